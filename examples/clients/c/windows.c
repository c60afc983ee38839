/* A client in C, on Windows: cl windows.c, or gcc -municode -o client.exe windows.c; client \\.\pipe\NAME MESSAGE...
 *
 * Sends each MESSAGE as UTF-8 and prints its reply. */
#ifndef UNICODE
#define UNICODE
#endif
#include <windows.h>

#include <stdio.h>
#include <stdlib.h>

/* The server's limit, pipe-server's --max-message-size. */
#define MAX_MESSAGE_SIZE 65536

/* How long to wait for a busy pipe, in milliseconds. */
#define BUSY_TIMEOUT 20000

static void fail(const char *what) {
    fprintf(stderr, "%s: error %lu\n", what, GetLastError());
    exit(1);
}

static HANDLE connect_to(const wchar_t *address) {
    for (;;) {
        /* With SECURITY_IDENTIFICATION the server learns who this is, but can't act in this user's name. It learns it
         * from each message with SECURITY_CONTEXT_TRACKING; what it learns from the open can get lost. These are the
         * rights that a client needs. GENERIC_WRITE would also ask for the right to create instances, which a
         * server need not grant to other users. */
        HANDLE pipe = CreateFile(address, FILE_READ_DATA | FILE_WRITE_DATA | FILE_READ_ATTRIBUTES | FILE_WRITE_ATTRIBUTES | SYNCHRONIZE,
                                 0, NULL, OPEN_EXISTING, SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION | SECURITY_CONTEXT_TRACKING, NULL);
        if (pipe != INVALID_HANDLE_VALUE)
            return pipe;
        if (GetLastError() != ERROR_PIPE_BUSY)
            fail("CreateFile");
        /* Another client may take the instance first: try again. */
        if (!WaitNamedPipe(address, BUSY_TIMEOUT))
            fail("WaitNamedPipe");
    }
}

int wmain(int argc, wchar_t **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: client \\\\.\\pipe\\NAME MESSAGE...\n");
        return 2;
    }
    HANDLE pipe = connect_to(argv[1]);
    /* A new handle reads bytes. In this mode each read ends with its message. */
    DWORD mode = PIPE_READMODE_MESSAGE;
    if (!SetNamedPipeHandleState(pipe, &mode, NULL, NULL))
        fail("SetNamedPipeHandleState");

    char *message = malloc(MAX_MESSAGE_SIZE), *reply = malloc(MAX_MESSAGE_SIZE);
    for (int i = 2; i < argc; i++) {
        int length = WideCharToMultiByte(CP_UTF8, 0, argv[i], (int)wcslen(argv[i]), message, MAX_MESSAGE_SIZE, NULL, NULL);
        if (length == 0)
            fail("a message is empty or too long");
        /* One call writes one message. */
        DWORD count;
        if (!WriteFile(pipe, message, (DWORD)length, &count, NULL))
            fail("WriteFile");
        /* A message longer than the buffer ends the read with ERROR_MORE_DATA; the next read returns its rest. */
        if (!ReadFile(pipe, reply, MAX_MESSAGE_SIZE, &count, NULL))
            fail(GetLastError() == ERROR_BROKEN_PIPE ? "the server closed the pipe instead of replying" : "ReadFile");
        fwrite(reply, 1, count, stdout);
        putchar('\n');
    }
    CloseHandle(pipe);
    return 0;
}
