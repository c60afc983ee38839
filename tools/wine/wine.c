// Prints where Wine differs from Windows, apart from its pipes, and what a pipe costs under Wine. docs/wine.md says how
// to run it, and has the results.

#include <windows.h>

#include <psapi.h>
#include <stdio.h>
#include <stdlib.h>

#define NAME "\\\\.\\pipe\\wine-probe"
#define TIMES 100

static HANDLE create(void) {
    return CreateNamedPipeA(NAME, PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED,
                            PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE | PIPE_REJECT_REMOTE_CLIENTS, 1, 1 << 16, 1 << 16, 0,
                            NULL);
}

static HANDLE connect_to(const char *name) {
    return CreateFileA(name, GENERIC_READ | GENERIC_WRITE, 0, NULL, OPEN_EXISTING, FILE_FLAG_OVERLAPPED, NULL);
}

static int worked(HANDLE handle) { return handle != INVALID_HANDLE_VALUE; }

static void remote_clients(void) {
    HANDLE server = create();
    HANDLE client = connect_to("\\\\localhost\\pipe\\wine-probe");
    printf("\\\\localhost\\pipe fails with error %lu\n", worked(client) ? 0 : GetLastError());
    CloseHandle(server);
    printf("GetNamedPipeClientComputerName is %s\n",
           GetProcAddress(GetModuleHandleA("kernel32"), "GetNamedPipeClientComputerNameW") ? "present" : "missing");
}

static void counters(void) {
    DWORD count = 0;
    PROCESS_MEMORY_COUNTERS_EX memory = {0};
    volatile char *used = malloc(64 << 20);
    for (int i = 0; i < 64 << 20; i += 4096) used[i] = 1;
    GetProcessHandleCount(GetCurrentProcess(), &count);
    GetProcessMemoryInfo(GetCurrentProcess(), (PROCESS_MEMORY_COUNTERS *)&memory, sizeof memory);
    printf("GetProcessHandleCount reports %lu\n", count);
    printf("with 64 MiB in use PrivateUsage is %zu MiB, PagefileUsage %zu MiB, WorkingSetSize %zu MiB\n",
           memory.PrivateUsage >> 20, memory.PagefileUsage >> 20, memory.WorkingSetSize >> 20);
}

static HANDLE server, client;
static volatile LONG reads;

static DWORD WINAPI write_often(void *nothing) {
    DWORD done;
    OVERLAPPED overlapped = {0};
    for (int i = 0; i < TIMES; i++) WriteFile(client, "hello", 5, &done, &overlapped);
    return 0;
}

static DWORD WINAPI read_often(void *port) {
    DWORD done;
    char text[8];
    ULONG_PTR key;
    OVERLAPPED overlapped = {0}, *ended;
    if (!port) overlapped.hEvent = CreateEventA(NULL, TRUE, FALSE, NULL);
    for (int i = 0; i < TIMES; i++) {
        if (ReadFile(server, text, sizeof text, NULL, &overlapped) || GetLastError() != ERROR_IO_PENDING)
            puts("a read did not wait");
        InterlockedIncrement(&reads);
        if (port)
            GetQueuedCompletionStatus(port, &done, &key, &ended, INFINITE);
        else
            GetOverlappedResult(server, &overlapped, &done, TRUE);
    }
    return 0;
}

static HANDLE start(const char *what, LPTHREAD_START_ROUTINE run, void *port) {
    DWORD id;
    HANDLE thread = CreateThread(NULL, 0, run, port, CREATE_SUSPENDED, &id);
    printf("thread %04lx: %d %s\n", id, TIMES, what);
    fflush(stdout);
    ResumeThread(thread);
    return thread;
}

static void feed(HANDLE reader) {
    DWORD done;
    OVERLAPPED overlapped = {0};
    for (int i = 0; i < TIMES; i++) {
        while (reads == 0) Sleep(1);
        reads = 0;
        // Gives the reader time to block.
        Sleep(5);
        WriteFile(client, "hello", 5, &done, &overlapped);
    }
    WaitForSingleObject(reader, INFINITE);
}

static void requests(void) {
    DWORD done;
    char text[8];
    OVERLAPPED overlapped = {0};
    server = create();
    client = connect_to(NAME);
    WaitForSingleObject(start("writes", write_often, NULL), INFINITE);
    for (int i = 0; i < TIMES; i++) ReadFile(server, text, sizeof text, &done, &overlapped);
    feed(start("reads that wait for an event", read_often, NULL));
    feed(start("reads that wait at a completion port", read_often, CreateIoCompletionPort(server, NULL, 0, 0)));
}

static void CALLBACK completed(PTP_CALLBACK_INSTANCE instance, void *context, void *overlapped, ULONG result,
                               ULONG_PTR length, PTP_IO io) {
    (void)instance, (void)context, (void)overlapped, (void)result, (void)length, (void)io;
}

static SIZE_T memory_in_use(void) {
    PROCESS_MEMORY_COUNTERS counters = {sizeof counters};
    GetProcessMemoryInfo(GetCurrentProcess(), &counters, sizeof counters);
    return counters.PagefileUsage;
}

// The bytes leaked per pipe when many are created, optionally bound to the thread pool, and closed.
static long leaked(int bind) {
    SIZE_T before = 0;
    for (int count = -1000; count < 10000; count++) {
        if (count == 0)
            before = memory_in_use();
        HANDLE server = create();
        if (bind)
            CloseThreadpoolIo(CreateThreadpoolIo(server, completed, NULL, NULL));
        CloseHandle(server);
    }
    return ((long)memory_in_use() - (long)before) / 10000;
}

static void thread_pool(void) {
    long without = leaked(0);
    printf("a pipe leaks %ld bytes, with CreateThreadpoolIo and CloseThreadpoolIo %ld\n", without, leaked(1));
}

int main(void) {
    remote_clients();
    counters();
    thread_pool();
    requests();
    return 0;
}
