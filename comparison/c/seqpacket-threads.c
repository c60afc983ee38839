/* Microsoft's Multithreaded Pipe Server on Linux: the main loop accepts, and each client has a thread that reads
   requests and writes replies until the client closes. This one echoes.

   usage: seqpacket-threads PATH LONGEST */
#include "socket.h"

#include <pthread.h>

static void *instance_thread(void *argument)
{
    int socket = (int)(long)argument;
    char *request = malloc(longest);
    ssize_t length;
    while (request && (length = recv(socket, request, longest, 0)) > 0)
        if (send(socket, request, (size_t)length, MSG_NOSIGNAL | MSG_EOR) < 0)
            break;
    free(request);
    close(socket);
    return NULL;
}

int main(int count, char **arguments)
{
    if (count != 3) {
        fprintf(stderr, "usage: %s PATH LONGEST\n", arguments[0]);
        return 2;
    }
    longest = strtoul(arguments[2], NULL, 10);
    int listener = listen_at(arguments[1], SOCK_SEQPACKET);
    for (;;) {
        int socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (socket < 0)
            continue;
        grow_send_buffer(socket);
        pthread_t thread;
        if (pthread_create(&thread, NULL, instance_thread, (void *)(long)socket)) {
            close(socket);
            continue;
        }
        pthread_detach(thread);
    }
}
