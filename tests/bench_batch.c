/* bench_batch.c -- 10,000 lines at 10,000 requests a second, plain and over TLS, and flat out
 *
 * Two mock servers share one core, the batch has another.  The mocks take 50 ms, so that 500
 * requests are in flight.  What the batch costs is measured in its own process. */
#include "load.h"

enum { LINES = 10000 };

typedef struct mock {
    pid_t pid;
    char  url[64];
} mock;

typedef struct run_setup {
    const char *name;
    bool        tls;
    double      rate;
    mock        mocks[2];
} run_setup;

static mock start_mock(bool tls, const char *latency_ms, int nth) {
    mock m = { 0 };
    char log[64], line[256] = "";
    snprintf(log, sizeof log, "build/bench/mock%d.out", nth);
    char *argv[] = { "build/llmkit", "mock", "--listen", "127.0.0.1:0", "--quiet", "--latency_ms",
                     (char *)(uintptr_t)latency_ms, tls ? "--tls" : NULL, "--cert",
                     "build/certs/ec.pem", "--key", "build/certs/ec.key", NULL };
    m.pid = lk_spawn(argv, 1, log);
    for (int i = 0; i < 500 && !m.url[0]; i++) {
        usleep(10000);
        FILE *file = fopen(log, "r");
        if (file && fgets(line, sizeof line, file)) sscanf(line, "listening on %40s", m.url);
        if (file) fclose(file);
    }
    if (!m.url[0]) lk_die("no mock: is build/llmkit made?");
    strcat(m.url, "/v1");
    return m;
}

static void write_lines(void) {
    FILE *file = fopen("build/bench/requests.jsonl", "w");
    if (!file) lk_die("build/bench cannot be written");
    for (int i = 0; i < LINES; i++)
        fprintf(file, "{\"input\": \"What is the square of %d, and why is it not a prime?\"}\n", i);
    fclose(file);
    unlink("build/bench/results.jsonl");
    unlink("build/bench/errors.jsonl");
}

static void run_batch(const void *arg, lk_load *load) {
    const run_setup *s = arg;
    llmkit_error error;
    llmkit_tls *tls = llmkit_tls_create(&(llmkit_tls_desc){ .ca_file = "build/certs/bundle.pem" },
                                        &error);
    const llmkit_endpoint endpoints[] = { { .base_url = s->mocks[0].url, .weight = 3 },
                                          { .base_url = s->mocks[1].url, .weight = 1 } };
    llmkit_batch *b = llmkit_batch_create(&(llmkit_batch_desc){
        .requests_path = "build/bench/requests.jsonl", .save_path = "build/bench/results.jsonl",
        .errors_path = "build/bench/errors.jsonl", .endpoints = endpoints, .num_endpoints = 2,
        .model = "mock", .tls = tls, .max_requests_per_s = s->rate,
        .max_in_flight = s->rate > 0 ? 4096 : 256, .warm = s->rate > 0 ? 600 : 256 }, &error);
    if (!b) lk_die(error.message);
    double cpu = lk_cpu_s(), user = lk_user_s();
    if (llmkit_batch_run(b, &error)) lk_die(error.message);
    llmkit_batch_stats st = llmkit_batch_read(b);
    *load = (lk_load){ .requests = (double)st.saved, .errors = (double)st.failed,
                       .wall_s = (double)st.elapsed_ns / 1e9, .cpu_s = lk_cpu_s() - cpu,
                       .user_s = lk_user_s() - user };
    printf("  %-12s first attempts within %.3f s (late p50 %.2f p99 %.2f ms), all within %.3f s; "
           "warm-up %.2f s, %llu connections\n", s->name, (double)st.first_attempts_ns / 1e9,
           st.lateness_p50_ms, st.lateness_p99_ms, load->wall_s, (double)st.warm_ns / 1e9,
           (unsigned long long)st.client.connects);
    printf("  %-12s latency p50 %.1f p99 %.1f max %.1f ms\n", "", st.latency_p50_ms,
           st.latency_p99_ms, st.latency_max_ms);
    fflush(stdout);
    load->extra = (double)st.first_attempts_ns / 1e9;
    llmkit_batch_destroy(b);
    llmkit_tls_release(tls);
}

static void figures(const run_setup *s, const lk_load *l) {
    char id[64];
    snprintf(id, sizeof id, "batch.%s_rate", s->name);
    lk_figure(id, l->requests / l->wall_s, "lines/s", NULL, 0, NULL);
    snprintf(id, sizeof id, "batch.%s_first_attempts_s", s->name);
    if (s->rate > 0) lk_figure(id, l->extra, "s", "<=", 1.02, "asked for: 1.0");
    snprintf(id, sizeof id, "batch.%s_cpu_us", s->name);
    lk_figure(id, l->cpu_s / l->requests * 1e6, "us/line", NULL, 0, "2024 original: 47 to 55");
    snprintf(id, sizeof id, "batch.%s_peak_mb", s->name);
    lk_figure(id, l->rss_kb / 1024, "MB", NULL, 0, "successor: 87 at 20,000 lines");
}

static void measure(run_setup *s) {
    write_lines();
    for (int i = 0; i < 2; i++) s->mocks[i] = start_mock(s->tls, s->rate > 0 ? "50" : "0", i);
    lk_load load = lk_contend(run_batch, s, s->mocks[0].pid);
    for (int i = 0; i < 2; i++) lk_stop(s->mocks[i].pid);
    if (load.requests != LINES) lk_die("lines are missing");
    figures(s, &load);
}

int main(void) {
    if (system("mkdir -p build/bench && sh tests/make_certs build/certs >/dev/null"))
        lk_die("no certificates: tests/make_certs failed");
    printf("batch: %d lines, two mocks weighted 3 to 1\n", LINES);
    run_setup setups[] = { { .name = "plain_10k", .rate = 10000 },
                           { .name = "tls_10k", .tls = true, .rate = 10000 },
                           { .name = "plain_flat" }, { .name = "tls_flat", .tls = true } };
    for (size_t i = 0; i < LK__COUNT(setups); i++) measure(&setups[i]);
    return 0;
}
