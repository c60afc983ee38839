/* The limit on Windows: echoes messages through a completion port, with nothing between it and the system. No handler,
   no timeouts, no log, no graceful shutdown; a message over LONGEST ends its connection.

   usage: completion-port NAME LONGEST THREADS */
#include "pipe.h"

/* Instances waiting for clients, so that one is available while another is being created. */
#define BACKLOG 4

enum state { CONNECTING, READING, WRITING };

struct client {
    OVERLAPPED overlapped;
    HANDLE pipe;
    enum state state;
    char *buffer;
};

static HANDLE port;

static void await_client(void);

static void drop(struct client *client)
{
    CloseHandle(client->pipe);
    free(client->buffer);
    free(client);
}

/* Whether the operation completed at once. Drops the client if it failed. */
static int is_over(struct client *client, BOOL done)
{
    if (done)
        return 1;
    if (GetLastError() != ERROR_IO_PENDING)
        drop(client);
    return 0;
}

/* Reads and writes until one of them pends. */
static void converse(struct client *client, DWORD length)
{
    for (;;) {
        DWORD moved;
        BOOL done;
        memset(&client->overlapped, 0, sizeof client->overlapped);
        if (client->state == READING) {
            if (length == 0) {
                drop(client);
                return;
            }
            client->state = WRITING;
            done = WriteFile(client->pipe, client->buffer, length, &moved, &client->overlapped);
        } else {
            client->state = READING;
            done = ReadFile(client->pipe, client->buffer, longest, &moved, &client->overlapped);
        }
        if (!is_over(client, done))
            return;
        length = moved;
    }
}

static void connected(struct client *client)
{
    await_client();
    client->buffer = malloc(longest);
    if (!client->buffer)
        fail("malloc");
    converse(client, 0);
}

static void await_client(void)
{
    for (;;) {
        struct client *client = calloc(1, sizeof *client);
        if (!client)
            fail("calloc");
        client->pipe = create_instance(FILE_FLAG_OVERLAPPED);
        if (!CreateIoCompletionPort(client->pipe, port, (ULONG_PTR)client, 0))
            fail("CreateIoCompletionPort");
        /* An operation that completes at once queues no packet. */
        SetFileCompletionNotificationModes(client->pipe,
                                           FILE_SKIP_COMPLETION_PORT_ON_SUCCESS | FILE_SKIP_SET_EVENT_ON_HANDLE);
        client->state = CONNECTING;
        if (ConnectNamedPipe(client->pipe, &client->overlapped) || GetLastError() == ERROR_PIPE_CONNECTED) {
            PostQueuedCompletionStatus(port, 0, (ULONG_PTR)client, &client->overlapped);
            return;
        }
        if (GetLastError() == ERROR_IO_PENDING)
            return;
        drop(client);
    }
}

static DWORD WINAPI serve(void *argument)
{
    (void)argument;
    for (;;) {
        DWORD length;
        ULONG_PTR key;
        OVERLAPPED *overlapped;
        BOOL done = GetQueuedCompletionStatus(port, &length, &key, &overlapped, INFINITE);
        struct client *client = (struct client *)key;
        if (!overlapped)
            continue;
        if (client->state == CONNECTING)
            connected(client);
        else if (done)
            converse(client, length);
        else
            drop(client);
    }
    return 0;
}

int main(int count, char **arguments)
{
    if (count != 4) {
        fprintf(stderr, "usage: %s NAME LONGEST THREADS\n", arguments[0]);
        return 2;
    }
    set_up(arguments[1], arguments[2]);
    port = CreateIoCompletionPort(INVALID_HANDLE_VALUE, NULL, 0, 0);
    if (!port)
        fail("CreateIoCompletionPort");
    for (int index = 0; index < BACKLOG; index++)
        await_client();
    announce();
    for (int threads = atoi(arguments[3]); threads > 1; threads--)
        CloseHandle(CreateThread(NULL, 0, serve, NULL, 0, NULL));
    return (int)serve(NULL);
}
