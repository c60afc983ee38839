/* Loads an echo server from blocking threads, one per client, with nothing between them and the kernel.

   usage: socket-load TYPE PATH SERVER CLIENTS DEPTH BURST SIZE WARM-UP DURATION

   TYPE is `seqpacket`, or `stream` for messages with a length prefix. SERVER is the id of the server's process. Each client
   sends DEPTH requests of SIZE bytes, which must fit the socket's buffer together. Then, after every BURST replies, it sends
   as many requests: one keeps DEPTH requests in flight, and as many as DEPTH alternate between sending all requests and
   receiving all replies. The times are in milliseconds.

   Prints one line of JSON: the number of requests answered since the start, and of the time after the warm-up the rate and
   the server's processor time (user and system) per request in microseconds. */
#include "socket.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

struct client {
    int socket;
    _Alignas(128) atomic_ulong answered; /* no cache line has two */
};

static int type;
static int depth, burst;
static size_t wire_length; /* of a message with its prefix */

static void exchange_failed(const char *what, ssize_t length)
{
    if (length < 0)
        fail(what);
    fprintf(stderr, "socket-load: %s: %zd bytes instead of %zu\n", what, length, wire_length);
    exit(1);
}

static void send_request(int socket, const char *request)
{
    ssize_t length = send(socket, request, wire_length, MSG_NOSIGNAL | (type == SOCK_SEQPACKET ? MSG_EOR : 0));
    if (length != (ssize_t)wire_length)
        exchange_failed("sending a request", length);
}

/* Receives one reply: a packet, or as many bytes as a request has. */
static void receive_reply(int socket, char *reply)
{
    ssize_t length = recv(socket, reply, wire_length, type == SOCK_SEQPACKET ? MSG_TRUNC : MSG_WAITALL);
    if (length != (ssize_t)wire_length)
        exchange_failed("receiving a reply", length);
}

static void *load(void *argument)
{
    struct client *client = argument;
    char *request = calloc(1, wire_length), *reply = malloc(wire_length);
    if (!request || !reply)
        fail("malloc");
    if (type == SOCK_STREAM)
        write_prefix(request, wire_length - PREFIX);
    for (int sent = 0; sent < depth; sent++)
        send_request(client->socket, request);
    for (;;) {
        for (int received = 0; received < burst; received++) {
            receive_reply(client->socket, reply);
            atomic_fetch_add_explicit(&client->answered, 1, memory_order_relaxed);
        }
        for (int sent = 0; sent < burst; sent++)
            send_request(client->socket, request);
    }
    return NULL;
}

static unsigned long answered(struct client *clients, int count)
{
    unsigned long sum = 0;
    for (int index = 0; index < count; index++)
        sum += atomic_load_explicit(&clients[index].answered, memory_order_relaxed);
    return sum;
}

/* In seconds. */
static double read_clock(clockid_t clock)
{
    struct timespec time;
    if (clock_gettime(clock, &time) < 0)
        fail("reading a clock");
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Counts the processor time of a process: of all its threads, user and system. */
static clockid_t processor_clock(const char *process)
{
    clockid_t clock;
    int error = clock_getcpuclockid((pid_t)atoi(process), &clock);
    if (error) {
        fprintf(stderr, "socket-load: the processor time of process %s: %s\n", process, strerror(error));
        exit(1);
    }
    return clock;
}

static void pause_for(const char *milliseconds)
{
    long time = atol(milliseconds);
    struct timespec left = {.tv_sec = time / 1000, .tv_nsec = time % 1000 * 1000000};
    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

int main(int count, char **arguments)
{
    if (count != 10) {
        fprintf(stderr, "usage: %s TYPE PATH SERVER CLIENTS DEPTH BURST SIZE WARM-UP DURATION\n", arguments[0]);
        return 2;
    }
    type = socket_type(arguments[1]);
    struct sockaddr_un address = address_of(arguments[2]);
    clockid_t server = processor_clock(arguments[3]);
    int number = atoi(arguments[4]);
    depth = atoi(arguments[5]);
    burst = atoi(arguments[6]);
    if (burst < 1 || burst > depth) {
        fprintf(stderr, "socket-load: BURST must be between 1 and DEPTH\n");
        return 2;
    }
    longest = strtoul(arguments[7], NULL, 10);
    wire_length = longest + (type == SOCK_STREAM ? PREFIX : 0);

    struct client *clients = aligned_alloc(128, (size_t)number * sizeof *clients);
    if (!clients)
        fail("aligned_alloc");
    /* All are connected before the first one sends. */
    for (int index = 0; index < number; index++) {
        clients[index].socket = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
        atomic_init(&clients[index].answered, 0);
        if (clients[index].socket < 0)
            fail("socket");
        if (connect(clients[index].socket, (struct sockaddr *)&address, sizeof address) < 0)
            fail("connect");
        grow_send_buffer(clients[index].socket);
    }
    for (int index = 0; index < number; index++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, load, &clients[index]))
            fail("starting a thread");
    }
    pause_for(arguments[8]);
    unsigned long before = answered(clients, number);
    double begun = read_clock(CLOCK_MONOTONIC), spent = read_clock(server);
    pause_for(arguments[9]);
    unsigned long after = answered(clients, number);
    double time = read_clock(CLOCK_MONOTONIC) - begun;
    spent = read_clock(server) - spent;
    double requests = (double)(after - before);
    printf("{\"messages\": %lu, \"messages_per_second\": %.1f, \"processor_us_per_message\": %.4f}\n", after,
           requests / time, spent * 1e6 / requests);
    return 0;
}
