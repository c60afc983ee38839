/* What the epoll servers share: their threads, each with an epoll of its own, and the clients, which are assigned to the
   threads round robin. A server includes socket.h, defines struct client with its `socket`, and includes this. */
#include <pthread.h>
#include <sys/epoll.h>

#define EVENTS 256

/* Answers a client whose socket is ready. `buffer` has room for the longest message and its prefix. */
static void handle(int epoll, struct client *client, char *buffer);

static void watch(int epoll, int operation, struct client *client, unsigned events)
{
    struct epoll_event event = {.events = events, .data.ptr = client};
    if (epoll_ctl(epoll, operation, client->socket, &event) < 0)
        fail("epoll_ctl");
}

static void *serve(void *argument)
{
    int epoll = (int)(long)argument;
    char *buffer = malloc(PREFIX + longest);
    struct epoll_event events[EVENTS];
    if (!buffer)
        fail("malloc");
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int index = 0; index < count; index++)
            handle(epoll, events[index].data.ptr, buffer);
    }
    return NULL;
}

/* The main function of a server on sockets of this type. */
static int run(int type, int count, char **arguments)
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
    int listener = listen_at(arguments[1], type);
    for (unsigned next = 0;; next++) {
        int socket = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (socket < 0)
            continue;
        if (type == SOCK_SEQPACKET)
            grow_send_buffer(socket);
        struct client *client = calloc(1, sizeof *client);
        if (!client)
            fail("calloc");
        client->socket = socket;
        watch(epolls[next % (unsigned)threads], EPOLL_CTL_ADD, client, EPOLLIN);
    }
}
