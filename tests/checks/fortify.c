/* fortify.c -- what a library compiled with -D_FORTIFY_SOURCE asks of libc, for one without it
 *
 * Each is the plain function with one more argument, the size of the destination, which the
 * compiler knew (Linux Standard Base, "Interface Definitions for libc"). */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

void *__memcpy_chk(void *to, const void *from, size_t size, size_t room);
void *__memmove_chk(void *to, const void *from, size_t size, size_t room);
void *__memset_chk(void *to, int byte, size_t size, size_t room);

void *__memcpy_chk(void *to, const void *from, size_t size, size_t room) {
    if (size > room) abort();
    return memcpy(to, from, size);
}

void *__memmove_chk(void *to, const void *from, size_t size, size_t room) {
    if (size > room) abort();
    return memmove(to, from, size);
}

void *__memset_chk(void *to, int byte, size_t size, size_t room) {
    if (size > room) abort();
    return memset(to, byte, size);
}
