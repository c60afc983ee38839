/* What message boundaries cost on Linux when clients wait for each reply, with nothing of ours in between: clients and
   servers use edge-triggered epoll, as Tokio does, in one process with one thread of clients and one of servers per
   processor.

   usage: boundaries CLIENTS

   A read from a stream that returns less than was asked for has emptied the socket. With SOCK_SEQPACKET only another read
   can tell. The third figure is for servers and clients that leave this read out. They are not correct: of two messages
   that arrive before one event, the second would be left. */
#include "socket.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <time.h>

enum { SIZE = 64, BUFFER = 65536, EVENTS = 256, ROUNDS = 11, ROUND_MS = 300 };

/* The thread of some servers or of some clients. */
struct side {
    pthread_t thread;
    int epoll;
    long messages;
};

static struct {
    const char *name;
    int type, reads_again;
} kinds[] = {
    {"stream", SOCK_STREAM, 0},
    {"SEQPACKET", SOCK_SEQPACKET, 1},
    {"SEQPACKET without the second read", SOCK_SEQPACKET, 0},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static int reads_again;
static atomic_int is_over;

/* Sends each message back: to the client a reply, to the server the next request. */
static void *converse(void *argument)
{
    struct side *side = argument;
    char buffer[BUFFER];
    struct epoll_event events[EVENTS];
    while (!is_over) {
        int count = epoll_wait(side->epoll, events, EVENTS, 10);
        for (int index = 0; index < count; index++) {
            int socket = events[index].data.fd;
            /* The peer has read. Tokio does not read then either. */
            if (!(events[index].events & EPOLLIN))
                continue;
            do {
                ssize_t length = recv(socket, buffer, sizeof buffer, 0);
                if (length < 0 && errno == EAGAIN)
                    break;
                if (length <= 0 || send(socket, buffer, (size_t)length, MSG_NOSIGNAL) != length)
                    fail("receiving or sending");
                side->messages++;
            } while (reads_again);
        }
    }
    return NULL;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* The rate of requests. */
static double measure(int type, int clients, int processors)
{
    struct side sides[2 * processors];
    int sockets[2 * clients];
    char request[SIZE] = {0};
    for (int index = 0; index < 2 * processors; index++) {
        sides[index] = (struct side){.epoll = epoll_create1(EPOLL_CLOEXEC)};
        if (sides[index].epoll < 0)
            fail("epoll_create1");
    }
    for (int index = 0; index < 2 * clients; index += 2) {
        if (socketpair(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sockets + index) < 0)
            fail("socketpair");
        for (int end = 0; end < 2; end++) {
            struct epoll_event event = {
                .events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                .data.fd = sockets[index + end],
            };
            int epoll = sides[(index + end) % (2 * processors)].epoll;
            if (epoll_ctl(epoll, EPOLL_CTL_ADD, sockets[index + end], &event) < 0)
                fail("epoll_ctl");
        }
    }
    is_over = 0;
    for (int index = 0; index < 2 * processors; index++)
        if (pthread_create(&sides[index].thread, NULL, converse, &sides[index]))
            fail("starting a thread");
    double begin = now();
    for (int index = 0; index < 2 * clients; index += 2)
        if (send(sockets[index], request, SIZE, MSG_NOSIGNAL) != SIZE)
            fail("send");
    usleep(ROUND_MS * 1000);
    is_over = 1;
    long messages = 0;
    for (int index = 0; index < 2 * processors; index++) {
        pthread_join(sides[index].thread, NULL);
        messages += sides[index].messages;
    }
    double rate = (double)messages / 2 / (now() - begin);
    for (int index = 0; index < 2 * processors; index++)
        close(sides[index].epoll);
    for (int index = 0; index < 2 * clients; index++)
        close(sockets[index]);
    return rate;
}

static int compare(const void *left, const void *right)
{
    double difference = *(const double *)left - *(const double *)right;
    return (difference > 0) - (difference < 0);
}

int main(int count, char **arguments)
{
    int clients = count == 2 ? atoi(arguments[1]) : 0;
    if (clients < 1) {
        fprintf(stderr, "usage: %s CLIENTS\n", arguments[0]);
        return 2;
    }
    double rates[KINDS][ROUNDS];
    for (int round = 0; round < ROUNDS; round++) {
        for (int turn = 0; turn < KINDS; turn++) {
            int kind = (round + turn) % KINDS;
            reads_again = kinds[kind].reads_again;
            rates[kind][round] = measure(kinds[kind].type, clients, (int)sysconf(_SC_NPROCESSORS_ONLN));
        }
    }
    for (int kind = 0; kind < KINDS; kind++) {
        qsort(rates[kind], ROUNDS, sizeof **rates, compare);
        printf("%.2f %s\n", rates[kind][ROUNDS / 2] / rates[0][ROUNDS / 2], kinds[kind].name);
    }
    return 0;
}
