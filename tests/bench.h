/* bench.h -- the first include of every benchmark and simulation: the library, clocks, figures
 *
 *     lk_figure("sse.event_ns", ns, "ns", "<=", 400, "wrk 1.3");
 *
 * prints a row for people and appends a line to build/figures.jsonl (LK_FIGURES names another):
 *
 *     {"id":"sse.event_ns","value":212.5,"unit":"ns","bar":"<=400","holds":true,"peer":"wrk 1.3"}
 *
 * What could not be measured gets no line. */
#pragma once

#define LLMKIT_IMPLEMENTATION
#define LLMKIT__KEEP_MACROS
#include "llmkit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define LK_BENCH __attribute__((unused)) static

static inline double lk_clock_s(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}
LK_BENCH double lk_wall_s(void) { return lk_clock_s(CLOCK_MONOTONIC); }
LK_BENCH double lk_cpu_s(void) { return lk_clock_s(CLOCK_PROCESS_CPUTIME_ID); }
LK_BENCH double lk_user_s(void) { /* without what the kernel does for us */
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_utime.tv_sec + (double)u.ru_utime.tv_usec / 1e6;
}

/* Keeps the compiler from dropping a computation whose result nobody reads. */
#define lk_keep(lvalue) __asm__ volatile("" : "+m"(lvalue) : : "memory")

LK_BENCH int lk_compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of num measurements, which are sorted by it.  The best is the least disturbed by other programs,
 * the median says what to expect. */
LK_BENCH double lk_best(double *values, size_t num) {
    qsort(values, num, sizeof *values, lk_compare_doubles);
    return values[0];
}
LK_BENCH double lk_median(double *values, size_t num) {
    qsort(values, num, sizeof *values, lk_compare_doubles);
    return num % 2 ? values[num / 2] : (values[num / 2 - 1] + values[num / 2]) / 2;
}

/* Nanoseconds of CPU time for one of `rounds` calls of work(user): the best of 15 tries. */
LK_BENCH double lk_time_ns(void (*work)(void *user), void *user, size_t rounds) {
    double tries[15];
    for (size_t i = 0; i < sizeof tries / sizeof *tries; i++) {
        double start = lk_cpu_s();
        for (size_t n = 0; n < rounds; n++) work(user);
        tries[i] = (lk_cpu_s() - start) * 1e9 / (double)rounds;
    }
    return lk_best(tries, sizeof tries / sizeof *tries);
}

/* op: "<=" or ">=", or NULL for a figure without a bar.  peer: whom it is compared with and what
 * they reach, or NULL. */
LK_BENCH bool lk_figure(const char *id, double value, const char *unit, const char *op, double bar,
                        const char *peer) {
    const char *path = getenv("LK_FIGURES");
    char limit[48] = "";
    bool holds = !op || (*op == '<' ? value <= bar : value >= bar);
    if (op) snprintf(limit, sizeof limit, "%s%.6g", op, bar);
    printf("  %-36s %12.6g %-10s %-12s %-7s %s\n", id, value, unit, limit,
           !op ? "" : holds ? "holds" : "MISSED", peer ? peer : "");
    fflush(stdout);
    if (value != value) return false; /* not a number: not measured */
    FILE *file = fopen(path ? path : "build/figures.jsonl", "a");
    if (!file) return holds;
    fprintf(file, "{\"id\":\"%s\",\"value\":%.9g,\"unit\":\"%s\",\"bar\":", id, value, unit);
    if (op) fprintf(file, "\"%s\",\"holds\":%s", limit, holds ? "true" : "false");
    else fprintf(file, "null,\"holds\":null");
    fprintf(file, peer ? ",\"peer\":\"%s\"}\n" : ",\"peer\":null}\n", peer);
    fclose(file);
    return holds;
}
