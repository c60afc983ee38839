/* A client in C, on Linux: cc -o client linux.c; ./client PATH MESSAGE...
 *
 * Sends each MESSAGE and prints its reply. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* The server's limit, pipe-server's --max-message-size. */
#define MAX_MESSAGE_SIZE 65536

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s PATH MESSAGE...\n", argv[0]);
        return 2;
    }
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(argv[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "%s: longer than %zu bytes\n", argv[1], sizeof address.sun_path - 1);
        return 2;
    }
    strcpy(address.sun_path, argv[1]);

    int pipe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (pipe < 0)
        fail("socket");
    /* On a blocking socket, this waits while the server is busy. */
    if (connect(pipe, (struct sockaddr *)&address, sizeof address) < 0)
        fail(argv[1]);

    for (int i = 2; i < argc; i++) {
        /* One call sends one message. Without MSG_NOSIGNAL, a server that has closed would end this program. */
        if (send(pipe, argv[i], strlen(argv[i]), MSG_NOSIGNAL) < 0)
            fail("send");
        /* One call receives one message. With MSG_TRUNC it returns the message's length, even if that is more
         * than the buffer holds; without it, the rest of a longer message would be lost unnoticed. */
        char reply[MAX_MESSAGE_SIZE];
        ssize_t length = recv(pipe, reply, sizeof reply, MSG_TRUNC);
        if (length < 0)
            fail("recv");
        if (length == 0) {
            fprintf(stderr, "the server closed the pipe instead of replying\n");
            return 1;
        }
        if ((size_t)length > sizeof reply) {
            fprintf(stderr, "the reply has %zd bytes, more than %zu\n", length, sizeof reply);
            return 1;
        }
        fwrite(reply, 1, length, stdout);
        putchar('\n');
    }
    close(pipe);
    return 0;
}
