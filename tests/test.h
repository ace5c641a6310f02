/* test.h -- the first include of every test: the library with its private parts, cmocka, helpers
 *
 *     #include "test.h"
 *
 *     static void answer_is_right(void **state) {
 *         (void)state;
 *         assert_int_equal(lk__answer(), 42);
 *     }
 *     static const struct CMUnitTest tests[] = { cmocka_unit_test(answer_is_right) };
 *     LK_TEST_MAIN(tests)
 *
 * Where a test uses what is private to one .c file, the split build needs that file in the test:
 *
 *     #ifdef LLMKIT__SPLIT
 *     #include "net/dns.c"
 *     #endif
 *
 * The program runs all its tests, or those whose names contain one of its arguments. */
#pragma once

#define LLMKIT_IMPLEMENTATION
#ifdef LLMKIT__SPLIT
#include "pieces.h" /* tests/run writes it: the private headers in the umbrella's order */
#else
#define LLMKIT__KEEP_MACROS
#include "llmkit.h"
#endif

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define LK_UNUSED __attribute__((unused))

/* ---- Strings ---------------------------------------------------------------------------------*/

/* assert_str(view, "literal") compares a llmkit_str with C text, and shows both. */
#define assert_str(view, text) lk_assert_str((view), (text), __FILE__, __LINE__)
/* assert_ok(call(...)) names the error that came instead of LLMKIT_OK. */
#define assert_ok(err)         lk_assert_err((err), LLMKIT_OK, __FILE__, __LINE__)
#define assert_err(err, code)  lk_assert_err((err), (code), __FILE__, __LINE__)

LK_UNUSED static void lk_assert_str(llmkit_str s, const char *text, const char *file, int line) {
    if (s.len == strlen(text) && (s.len == 0 || memcmp(s.ptr, text, s.len) == 0)) return;
    print_error("\"%.*s\" is not \"%s\"\n", (int)s.len, s.ptr ? s.ptr : "", text);
    _fail(file, line);
}

LK_UNUSED static void lk_assert_err(llmkit_err err, llmkit_err code, const char *file, int line) {
    if (err == code) return;
    print_error("%s is not %s\n", llmkit_err_name(err), llmkit_err_name(code));
    _fail(file, line);
}

/* ---- A guard page ----------------------------------------------------------------------------*/

/* A copy that ends right before a page that must not be read: one byte too far crashes.  It stays
 * until LK_NUM_GUARDED more have been made. */
enum { LK_NUM_GUARDED = 16 };

LK_UNUSED static char *lk_guarded(const void *data, size_t n) {
    static struct { char *base; size_t size; } ring[LK_NUM_GUARDED];
    static size_t next;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), i = next++ % LK_NUM_GUARDED;
    if (!ring[i].base || ring[i].size < n) {
        if (ring[i].base) munmap(ring[i].base, ring[i].size + page);
        ring[i].size = (n + page) / page * page;
        ring[i].base = mmap(NULL, ring[i].size + page, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(ring[i].base != MAP_FAILED);
        assert_int_equal(mprotect(ring[i].base + ring[i].size, page, PROT_NONE), 0);
    }
    char *copy = ring[i].base + ring[i].size - n;
    if (n) memcpy(copy, data, n);
    return copy;
}

LK_UNUSED static llmkit_str lk_guarded_str(const char *text) {
    size_t n = strlen(text);
    return (llmkit_str){ lk_guarded(text, n), n };
}

/* ---- Surroundings ----------------------------------------------------------------------------*/

/* An env that counts what is allocated, checks every old_size it is told, moves a block whenever it
 * is resized, and can refuse.  Any thread may allocate.  Pass &world.env on. */
typedef struct lk_world {
    llmkit_env   env;
    atomic_long  blocks, bytes; /* allocated now */
    atomic_ulong calls;         /* allocations and growths so far */
    atomic_ulong fail_at;       /* refuse this one of them; 0: none */
    atomic_bool  refused;
    _Atomic(int64_t) now_ns;    /* of the virtual clock */
    long         start_blocks;  /* when LK_EACH_REFUSAL began */
    char         log[256];      /* the last line that was logged */
} lk_world;

typedef struct lk_block { /* in front of what is handed out, and as aligned as malloc's */
    _Alignas(max_align_t) size_t size;
    size_t mark;
} lk_block;

static const size_t lk_block_mark = 0x6b636f6c;

LK_UNUSED static void lk_world_give_back(lk_world *w, void *ptr, size_t old_size) {
    lk_block *b = (lk_block *)ptr - 1;
    if (b->mark != lk_block_mark || b->size != old_size) {
        fprintf(stderr, "a block of %zu bytes is given back as one of %zu\n", b->size, old_size);
        abort();
    }
    b->mark = 0;
    free(b);
    w->blocks--;
    w->bytes -= (long)old_size;
}

LK_UNUSED static void *lk_world_alloc(void *user, void *ptr, size_t old_size, size_t new_size) {
    lk_world *w = user;
    if (new_size == 0) {
        if (ptr) lk_world_give_back(w, ptr, old_size);
        return NULL;
    }
    if (++w->calls == w->fail_at) {
        w->refused = true;
        return NULL;
    }
    lk_block *b = new_size > PTRDIFF_MAX - sizeof *b ? NULL : malloc(sizeof *b + new_size);
    if (!b) return NULL;
    *b = (lk_block){ .size = new_size, .mark = lk_block_mark };
    memset(b + 1, 0xa5, new_size);
    w->blocks++;
    w->bytes += (long)new_size;
    if (ptr) {
        memcpy(b + 1, ptr, old_size < new_size ? old_size : new_size);
        lk_world_give_back(w, ptr, old_size);
    }
    return b + 1;
}

LK_UNUSED static void lk_world_log(void *user, llmkit_level level, llmkit_err code,
                                   const char *text) {
    lk_world *w = user;
    snprintf(w->log, sizeof w->log, "%d %s %s", (int)level, llmkit_err_name(code), text);
}

LK_UNUSED static int64_t lk_world_now(void *user) {
    return ((lk_world *)user)->now_ns;
}

/* With the system's clock. */
LK_UNUSED static void lk_world_init(lk_world *w) {
    memset(w, 0, sizeof *w);
    w->env = (llmkit_env){ .alloc = lk_world_alloc, .log = lk_world_log, .user = w, .seed = 1 };
}

/* With a clock that stands still until the test moves world.now_ns. */
LK_UNUSED static void lk_world_init_virtual(lk_world *w, int64_t now_ns) {
    lk_world_init(w);
    w->env.now_ns = lk_world_now;
    w->now_ns = now_ns;
}

#define assert_no_leak(world) assert_int_equal((long)(world)->blocks, 0)

/* LK_EACH_REFUSAL(&world) { ... } runs the block with the first, the second, the third ...
 * allocation refused, until nothing is refused any more.  world.refused says whether that has
 * happened; each pass must give back all it took. */
#define LK_EACH_REFUSAL(world) for (lk_refusal_begin(world); lk_refusal_next(world);)

LK_UNUSED static void lk_refusal_begin(lk_world *w) {
    w->fail_at = 0;
    w->refused = true;
    w->start_blocks = w->blocks;
}

LK_UNUSED static bool lk_refusal_next(lk_world *w) {
    unsigned long nth = w->fail_at;
    w->fail_at = 0;
    if (w->blocks != w->start_blocks)
        fail_msg("with allocation %lu refused, %ld blocks are left over", nth,
                 w->blocks - w->start_blocks);
    if (!w->refused) return false;
    if (nth == 100000) fail_msg("%lu allocations and no end", nth);
    w->calls = 0;
    w->refused = false;
    w->fail_at = nth + 1;
    return true;
}

/* Under valgrind or a sanitizer: threads may starve, and nothing is as fast as it should be. */
LK_UNUSED static bool lk_is_slow(void) {
    return getenv("LK_TEST_SLOW") != NULL;
}

/* ---- main ------------------------------------------------------------------------------------*/

#define LK_TEST_MAIN(tests)                                                                        \
    int main(int argc, char **argv) {                                                              \
        return lk_test_main(__FILE__, tests, sizeof(tests) / sizeof((tests)[0]), argc, argv);      \
    }

static bool lk_test_wanted(const char *name, int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strstr(name, argv[i])) return true;
    return argc < 2;
}

static int lk_test_main(const char *group, const struct CMUnitTest *tests, size_t num, int argc,
                        char **argv) {
    const char *limit = getenv("LK_TEST_SECONDS");
    struct CMUnitTest *wanted = calloc(num, sizeof *wanted);
    size_t count = 0;
    if (!wanted) return 1;
    for (size_t i = 0; i < num; i++)
        if (lk_test_wanted(tests[i].name, argc, argv)) wanted[count++] = tests[i];
    alarm(limit ? (unsigned)atoi(limit) : 60); /* a test that hangs ends the program */
    int failed = count ? _cmocka_run_group_tests(group, wanted, count, NULL, NULL) : 1;
    free(wanted);
    return failed != 0;
}
