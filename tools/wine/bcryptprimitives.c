/* Every Rust program imports ProcessPrng from bcryptprimitives.dll. Wine 8 does not have that library (Wine 10 does),
   so tools/wine/set-up builds this one. SystemFunction036 is RtlGenRandom, Wine's own source of random bytes. */
#include <windows.h>

BOOLEAN WINAPI SystemFunction036(PVOID buffer, ULONG length);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE buffer, SIZE_T length)
{
    while (length > 0) {
        ULONG part = length > 0x10000000 ? 0x10000000 : (ULONG)length;
        if (!SystemFunction036(buffer, part))
            return FALSE;
        buffer += part;
        length -= part;
    }
    return TRUE;
}
