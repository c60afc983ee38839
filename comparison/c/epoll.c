/* The limit on Linux: echoes messages with nothing between it and the kernel. No handler, no timeouts, no log, no
   graceful shutdown; a message over LONGEST is truncated.

   usage: epoll PATH LONGEST THREADS

   Clients are assigned to threads round robin, and each thread has its own epoll. A client that does not read its reply
   is not read from until it does. */
#include "socket.h"

#include <pthread.h>
#include <sys/epoll.h>

#define EVENTS 256

struct client {
    int socket;
    /* A reply that did not fit the socket's buffer. */
    char *pending;
    size_t pending_length;
};

static void watch(int epoll, int operation, struct client *client, unsigned events)
{
    struct epoll_event event = {.events = events, .data.ptr = client};
    if (epoll_ctl(epoll, operation, client->socket, &event) < 0)
        fail("epoll_ctl");
}

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

static void *serve(void *argument)
{
    int epoll = (int)(long)argument;
    char *buffer = malloc(longest);
    struct epoll_event events[EVENTS];
    if (!buffer)
        fail("malloc");
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int index = 0; index < count; index++) {
            struct client *client = events[index].data.ptr;
            if (client->pending)
                flush(epoll, client);
            else
                echo(epoll, client, buffer);
        }
    }
    return NULL;
}

int main(int count, char **arguments)
{
    if (count != 4) {
        fprintf(stderr, "usage: %s PATH LONGEST THREADS\n", arguments[0]);
        return 2;
    }
    longest = strtoul(arguments[2], NULL, 10);
    int threads = atoi(arguments[3]);
    int epolls[threads];
    for (int index = 0; index < threads; index++) {
        pthread_t thread;
        epolls[index] = epoll_create1(EPOLL_CLOEXEC);
        if (epolls[index] < 0 || pthread_create(&thread, NULL, serve, (void *)(long)epolls[index]))
            fail("starting a thread");
    }
    int listener = listen_at(arguments[1], SOCK_SEQPACKET);
    for (unsigned next = 0;; next++) {
        int socket = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (socket < 0)
            continue;
        grow_send_buffer(socket);
        struct client *client = calloc(1, sizeof *client);
        if (!client)
            fail("calloc");
        client->socket = socket;
        watch(epolls[next % (unsigned)threads], EPOLL_CTL_ADD, client, EPOLLIN);
    }
}
