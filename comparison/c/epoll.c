/* The limit on Linux: echoes messages with nothing between it and the kernel. No handler, no timeouts, no log, no
   graceful shutdown; a message over LONGEST is truncated.

   usage: epoll PATH LONGEST THREADS

   A client that does not read its reply is not read from until it does. */
#include "socket.h"

struct client {
    int socket;
    /* A reply that did not fit the socket's buffer. */
    char *pending;
    size_t pending_length;
};

#include "epoll.h"

static void drop(int epoll, struct client *client)
{
    /* Closing is not enough: the main thread may still be inside the epoll_ctl that added the socket, which keeps it open,
       and a freed client would be reported again. This call waits for that one. */
    epoll_ctl(epoll, EPOLL_CTL_DEL, client->socket, NULL);
    close(client->socket);
    free(client->pending);
    free(client);
}

/* Sends the pending reply. */
static void flush(int epoll, struct client *client)
{
    if (send(client->socket, client->pending, client->pending_length, MSG_NOSIGNAL | MSG_EOR) < 0) {
        if (errno != EAGAIN)
            drop(epoll, client);
        return;
    }
    free(client->pending);
    client->pending = NULL;
    watch(epoll, EPOLL_CTL_MOD, client, EPOLLIN);
}

/* Echoes one message; the next epoll_wait reports the clients that have more. Another recv here would find nothing for
   every client that waits for its reply. */
static void echo(int epoll, struct client *client, char *buffer)
{
    ssize_t length = recv(client->socket, buffer, longest, 0);
    if (length < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (length <= 0) {
        drop(epoll, client);
        return;
    }
    if (send(client->socket, buffer, (size_t)length, MSG_NOSIGNAL | MSG_EOR) >= 0)
        return;
    if (errno != EAGAIN) {
        drop(epoll, client);
        return;
    }
    client->pending = malloc((size_t)length);
    if (!client->pending)
        fail("malloc");
    memcpy(client->pending, buffer, (size_t)length);
    client->pending_length = (size_t)length;
    watch(epoll, EPOLL_CTL_MOD, client, EPOLLOUT);
}

static void handle(int epoll, struct client *client, char *buffer)
{
    if (client->pending)
        flush(epoll, client);
    else
        echo(epoll, client, buffer);
}

int main(int count, char **arguments)
{
    return run(SOCK_SEQPACKET, count, arguments);
}
