/* Shared by the Linux programs: a Unix socket at a path, a send buffer for the longest message, and the length prefix of
   messages in a stream. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* The same as pipe-server's. */
#define QUEUE_LENGTH 1024

/* What the kernel reserves of the send buffer. */
#define SEND_OVERHEAD 32

/* The bytes before each message in a stream: its length, as LengthDelimitedCodec writes it. */
#define PREFIX 4

static size_t longest;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* Grows the send buffer to fit the longest message, if the default is smaller. Accepted sockets do not inherit it. */
static inline void grow_send_buffer(int socket)
{
    int size = 0, wanted = (int)longest + SEND_OVERHEAD;
    socklen_t length = sizeof size;
    getsockopt(socket, SOL_SOCKET, SO_SNDBUF, &size, &length);
    if (size < wanted)
        setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &wanted, sizeof wanted);
}

/* Removed on SIGINT and SIGTERM. */
static const char *listening_path;

static void end(int signal)
{
    (void)signal;
    unlink(listening_path);
    _exit(0);
}

static struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "%s is too long for a socket\n", path);
        exit(1);
    }
    strcpy(address.sun_path, path);
    return address;
}

static inline int listen_at(const char *path, int type)
{
    struct sockaddr_un address = address_of(path);
    int listener = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    if (listener < 0)
        fail("socket");
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0)
        fail("bind");
    if (listen(listener, QUEUE_LENGTH) < 0)
        fail("listen");
    listening_path = path;
    signal(SIGINT, end);
    signal(SIGTERM, end);
    printf("listening on %s\n", path);
    fflush(stdout);
    return listener;
}

static inline int socket_type(const char *name)
{
    if (!strcmp(name, "seqpacket"))
        return SOCK_SEQPACKET;
    if (!strcmp(name, "stream"))
        return SOCK_STREAM;
    fprintf(stderr, "%s is neither seqpacket nor stream\n", name);
    exit(2);
}

static inline void write_prefix(char *message, size_t length)
{
    uint32_t prefix = htonl((uint32_t)length);
    memcpy(message, &prefix, PREFIX);
}

static inline size_t read_prefix(const char *message)
{
    uint32_t prefix;
    memcpy(&prefix, message, PREFIX);
    return ntohl(prefix);
}
