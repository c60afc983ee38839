/* What epoll.c is for SOCK_SEQPACKET, for a stream: echoes messages with a length prefix. The two differ in the socket, so
   their rates show what the kernel charges for message boundaries.

   usage: stream-epoll PATH LONGEST THREADS

   Receives what has arrived, up to one message of LONGEST bytes, and sends the messages that it completes in one call. A
   client that does not read its replies is not read from until it does, and one that sends a longer message is closed. */
#include "socket.h"

struct client {
    int socket;
    /* What was received and not sent: replies that did not fit the socket's buffer, and then a message in part. NULL if
       there is nothing. */
    char *held;
    size_t begin, length, replies;
};

#include "epoll.h"

static void drop(int epoll, struct client *client)
{
    /* As in epoll.c. */
    epoll_ctl(epoll, EPOLL_CTL_DEL, client->socket, NULL);
    close(client->socket);
    free(client->held);
    free(client);
}

/* The number of bytes that whole messages take up, or -1 if one is too long. */
static ssize_t whole_messages(const char *bytes, size_t length)
{
    size_t end = 0;
    while (length - end >= PREFIX) {
        size_t message = read_prefix(bytes + end);
        if (message > longest)
            return -1;
        if (length - end < PREFIX + message)
            break;
        end += PREFIX + message;
    }
    return (ssize_t)end;
}

/* Holds what is left of `bytes`, of which the first `replies` are to be sent. */
static void hold(struct client *client, const char *bytes, size_t length, size_t replies)
{
    if (length == 0) {
        free(client->held);
        client->held = NULL;
    } else {
        if (!client->held)
            client->held = malloc(PREFIX + longest);
        if (!client->held)
            fail("malloc");
        memmove(client->held, bytes, length);
    }
    client->begin = 0;
    client->length = length;
    client->replies = replies;
}

/* Sends replies, and returns how many bytes the socket took, or -1 if the client is gone. */
static ssize_t send_replies(struct client *client, const char *bytes, size_t length)
{
    ssize_t sent = send(client->socket, bytes, length, MSG_NOSIGNAL);
    return sent < 0 && errno == EAGAIN ? 0 : sent;
}

/* Sends the replies that did not fit. */
static void flush(int epoll, struct client *client)
{
    ssize_t sent = send_replies(client, client->held + client->begin, client->replies);
    if (sent < 0) {
        drop(epoll, client);
        return;
    }
    client->begin += (size_t)sent;
    client->length -= (size_t)sent;
    client->replies -= (size_t)sent;
    if (client->replies == 0) {
        hold(client, client->held + client->begin, client->length, 0);
        watch(epoll, EPOLL_CTL_MOD, client, EPOLLIN);
    }
}

/* Echoes the messages that one recv completes; the next epoll_wait reports the clients that have more. */
static void echo(int epoll, struct client *client, char *buffer)
{
    char *bytes = client->held ? client->held : buffer;
    ssize_t received = recv(client->socket, bytes + client->length, PREFIX + longest - client->length, 0);
    if (received < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (received <= 0) {
        drop(epoll, client);
        return;
    }
    size_t length = client->length + (size_t)received;
    ssize_t replies = whole_messages(bytes, length), sent = 0;
    if (replies > 0)
        sent = send_replies(client, bytes, (size_t)replies);
    if (replies < 0 || sent < 0) {
        drop(epoll, client);
        return;
    }
    hold(client, bytes + sent, length - (size_t)sent, (size_t)(replies - sent));
    if (client->replies > 0)
        watch(epoll, EPOLL_CTL_MOD, client, EPOLLOUT);
}

static void handle(int epoll, struct client *client, char *buffer)
{
    if (client->replies > 0)
        flush(epoll, client);
    else
        echo(epoll, client, buffer);
}

int main(int count, char **arguments)
{
    return run(SOCK_STREAM, count, arguments);
}
