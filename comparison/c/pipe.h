/* Shared by both Windows servers: a pipe in message mode. */
#include <windows.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The same as pipe-server's. */
#define BUFFER_SIZE (64 * 1024)

static char address[300];
static DWORD longest;

static void fail(const char *what)
{
    fprintf(stderr, "%s: error %lu\n", what, GetLastError());
    ExitProcess(1);
}

static void set_up(const char *name, const char *length)
{
    snprintf(address, sizeof address, "\\\\.\\pipe\\%s", name);
    longest = strtoul(length, NULL, 10);
}

static HANDLE create_instance(DWORD flags)
{
    HANDLE pipe = CreateNamedPipeA(address, PIPE_ACCESS_DUPLEX | flags,
                                   PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE | PIPE_WAIT | PIPE_REJECT_REMOTE_CLIENTS,
                                   PIPE_UNLIMITED_INSTANCES, BUFFER_SIZE, BUFFER_SIZE, 0, NULL);
    if (pipe == INVALID_HANDLE_VALUE)
        fail("CreateNamedPipe");
    return pipe;
}

static void announce(void)
{
    printf("listening on %s\n", address);
    fflush(stdout);
}
