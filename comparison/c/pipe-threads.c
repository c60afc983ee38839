/* Microsoft's Multithreaded Pipe Server: the main loop creates an instance and waits for a client, and each client has a
   thread that reads requests and writes replies, with blocking calls, until the client closes. This one echoes, accepts
   messages longer than the sample's 512 bytes, and prints nothing.

   usage: pipe-threads NAME LONGEST */
#include "pipe.h"

static DWORD WINAPI instance_thread(void *argument)
{
    HANDLE pipe = argument;
    char *request = malloc(longest);
    DWORD length, written;
    while (request && ReadFile(pipe, request, longest, &length, NULL) && length > 0)
        if (!WriteFile(pipe, request, length, &written, NULL))
            break;
    free(request);
    FlushFileBuffers(pipe);
    DisconnectNamedPipe(pipe);
    CloseHandle(pipe);
    return 0;
}

int main(int count, char **arguments)
{
    if (count != 3) {
        fprintf(stderr, "usage: %s NAME LONGEST\n", arguments[0]);
        return 2;
    }
    set_up(arguments[1], arguments[2]);
    for (int announced = 0;;) {
        HANDLE pipe = create_instance(0);
        if (!announced) {
            announced = 1;
            announce();
        }
        if (!ConnectNamedPipe(pipe, NULL) && GetLastError() != ERROR_PIPE_CONNECTED) {
            CloseHandle(pipe);
            continue;
        }
        HANDLE thread = CreateThread(NULL, 0, instance_thread, pipe, 0, NULL);
        if (thread)
            CloseHandle(thread);
        else
            CloseHandle(pipe);
    }
}
