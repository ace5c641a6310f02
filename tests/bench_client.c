/* bench_client.c -- whole calls, one after another on each connection, against nginx
 *
 * The same requests by wrk, which builds nothing and reads no JSON, by libcurl's multi interface,
 * which reads no JSON, and by a client: it builds each request, and reads and checks each reply. */
#include "load.h"

#include <curl/curl.h>

static const double seconds = 2;

typedef struct setup {
    int  conns;
    bool tls;
    int  port;
} setup;

static const char body[] =
    "{\"model\":\"gpt-4o-mini\",\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},"
    "{\"role\":\"user\",\"content\":\"What is the airspeed of an unladen swallow?\"}]}";

static void url_of(char *out, size_t size, const setup *s) {
    snprintf(out, size, "%s://localhost:%d/v1", s->tls ? "https" : "http", s->port);
}

/* ---- the client ---- */

typedef struct closed_loop {
    llmkit_client *client;
    double         done, errors, end_s, start_s, start_cpu, start_user;
    int            left;
} closed_loop;

static void ask(closed_loop *c);

static void on_reply(void *user, const llmkit_reply *reply) {
    closed_loop *c = user;
    if (reply->error.code || reply->usage.output != 35) {
        if (c->errors++ == 0) fprintf(stderr, "llmkit: %s\n", reply->error.message);
    }
    c->done++;
    if (lk_wall_s() < c->end_s)
        ask(c);
    else
        c->left--;
}

static void ask(closed_loop *c) {
    llmkit_error error;
    if (llmkit_submit_whole(c->client, &(llmkit_request){
            .model = "gpt-4o-mini", .system = "Be brief.",
            .prompt = "What is the airspeed of an unladen swallow?" }, on_reply, c, NULL, &error))
        lk_die(error.message);
}

static void run_llmkit(const void *arg, lk_load *load) {
    const setup *s = arg;
    char url[64];
    url_of(url, sizeof url, s);
    llmkit_error error;
    llmkit_tls *tls = llmkit_tls_create(&(llmkit_tls_desc){ .ca_file = "build/certs/bundle.pem" },
                                        &error);
    closed_loop c = { .left = s->conns };
    c.client = llmkit_client_create(&(llmkit_client_desc){
        .tls = tls, .providers = &(llmkit_provider_desc){ .base_url = url, .api_key = "sk-none" },
        .num_providers = 1 }, &error);
    if (!c.client) lk_die(error.message);
    llmkit_loop *loop = llmkit_client_loop(c.client);
    llmkit_client_warm(c.client, NULL, (uint32_t)s->conns, NULL);
    for (double until = lk_wall_s() + 20; lk_wall_s() < until;) { /* handshakes are not measured */
        llmkit_loop_poll(loop, 10);
        if (llmkit_client_read(c.client).idle >= (uint32_t)s->conns) break;
    }
    double wall = lk_wall_s(), cpu = lk_cpu_s(), user = lk_user_s();
    c.end_s = wall + seconds;
    for (int i = 0; i < s->conns; i++) ask(&c);
    while (c.left > 0) llmkit_loop_poll(loop, -1);
    *load = (lk_load){ .requests = c.done, .errors = c.errors, .wall_s = lk_wall_s() - wall,
                       .cpu_s = lk_cpu_s() - cpu, .user_s = lk_user_s() - user };
    llmkit_client_destroy(c.client);
    llmkit_tls_release(tls);
}

/* ---- libcurl ---- */

static size_t swallow(char *bytes, size_t size, size_t num, void *user) {
    (void)bytes;
    *(size_t *)user += size * num;
    return size * num;
}

static void run_curl(const void *arg, lk_load *load) {
    const setup *s = arg;
    char url[96];
    url_of(url, sizeof url - 32, s);
    strcat(url, "/chat/completions");
    curl_global_init(CURL_GLOBAL_ALL);
    CURLM *multi = curl_multi_init();
    struct curl_slist *fields = curl_slist_append(NULL, "Content-Type: application/json");
    fields = curl_slist_append(fields, "Authorization: Bearer sk-none");
    curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long)s->conns);
    size_t bytes = 0;
    for (int i = 0; i < s->conns; i++) {
        CURL *easy = curl_easy_init();
        curl_easy_setopt(easy, CURLOPT_URL, url);
        curl_easy_setopt(easy, CURLOPT_POSTFIELDS, body);
        curl_easy_setopt(easy, CURLOPT_HTTPHEADER, fields);
        curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, swallow);
        curl_easy_setopt(easy, CURLOPT_WRITEDATA, &bytes);
        curl_easy_setopt(easy, CURLOPT_CAINFO, "build/certs/bundle.pem");
        curl_multi_add_handle(multi, easy);
    }
    double wall = 0, cpu = 0, user = 0;
    int running = 1, left = s->conns;
    while (left > 0) {
        curl_multi_perform(multi, &running);
        int queued;
        for (CURLMsg *m; (m = curl_multi_info_read(multi, &queued)) != NULL;) {
            CURL *easy = m->easy_handle;
            load->errors += m->data.result != CURLE_OK;
            load->requests++;
            curl_multi_remove_handle(multi, easy);
            if (!wall || lk_wall_s() < wall + seconds) curl_multi_add_handle(multi, easy);
            else left--;
        }
        if (!wall && load->requests >= 2 * s->conns) { /* handshakes are not measured */
            wall = lk_wall_s(), cpu = lk_cpu_s(), user = lk_user_s();
            load->requests = 0;
        }
        curl_multi_poll(multi, NULL, 0, 100, NULL);
    }
    load->wall_s = lk_wall_s() - wall;
    load->cpu_s = lk_cpu_s() - cpu;
    load->user_s = lk_user_s() - user;
}

/* ---- wrk ---- */

static void write_wrk_script(void) {
    FILE *file = fopen("build/bench/post.lua", "w");
    if (!file) lk_die("build/bench cannot be written");
    fprintf(file, "wrk.method = 'POST'\nwrk.body = '%s'\n"
                  "wrk.headers['Content-Type'] = 'application/json'\n"
                  "wrk.headers['Authorization'] = 'Bearer sk-none'\n", body);
    fclose(file);
}

static lk_load run_wrk(const setup *s, pid_t server) {
    lk_load load = { 0 };
    char url[96], conns[16], duration[16], line[256];
    url_of(url, sizeof url - 32, s);
    strcat(url, "/chat/completions");
    snprintf(conns, sizeof conns, "-c%d", s->conns);
    /* It cannot leave its handshakes out: longer, so that they matter less. */
    snprintf(duration, sizeof duration, "-d%ds", s->tls && s->conns > 100 ? 10 : (int)seconds);
    char *argv[] = { "wrk", "-t1", conns, duration, "-s", "build/bench/post.lua", url, NULL };
    double server_s = lk_cpu_of(server);
    pid_t pid = lk_spawn(argv, 0, "build/bench/wrk.out");
    struct rusage u;
    int status;
    wait4(pid, &status, 0, &u);
    load.server_s = lk_cpu_of(server) - server_s;
    load.user_s = (double)u.ru_utime.tv_sec + (double)u.ru_utime.tv_usec / 1e6;
    load.cpu_s = load.user_s + (double)u.ru_stime.tv_sec + (double)u.ru_stime.tv_usec / 1e6;
    load.rss_kb = (double)u.ru_maxrss;
    FILE *file = fopen("build/bench/wrk.out", "r");
    while (file && fgets(line, sizeof line, file)) {
        double rate;
        sscanf(line, " %lf requests in %lfs", &load.requests, &load.wall_s);
        if (sscanf(line, "Requests/sec: %lf", &rate) == 1 && rate > 0)
            load.wall_s = load.requests / rate;
    }
    if (file) fclose(file);
    return load;
}

/* ---- all of them ---- */

static void print_row(const char *name, const setup *s, const lk_load *l) {
    printf("  %-8s %-5s %5d conns %9.0f req/s %7.2f us CPU (%5.2f user) %6.1f MB  nginx %3.0f%%"
           "%s\n", name, s->tls ? "TLS" : "plain", s->conns, l->requests / l->wall_s,
           l->cpu_s / l->requests * 1e6, l->user_s / l->requests * 1e6, l->rss_kb / 1024,
           100 * l->server_s / l->wall_s, l->errors > 0 ? "  ERRORS" : "");
    fflush(stdout);
}

static void compare(const setup *s, pid_t server) {
    lk_load wrk = run_wrk(s, server);
    print_row("wrk", s, &wrk);
    lk_load curl = lk_contend(run_curl, s, server);
    print_row("libcurl", s, &curl);
    lk_load ours = lk_contend(run_llmkit, s, server);
    print_row("llmkit", s, &ours);
    if (ours.errors > 0) lk_die("calls failed");
    char id[64], name[32];
    double wrk_us = wrk.cpu_s / wrk.requests, curl_us = curl.cpu_s / curl.requests,
           our_us = ours.cpu_s / ours.requests;
    if (wrk.requests < s->conns || curl.requests < s->conns)
        lk_die("wrk or libcurl got nowhere: the machine is too busy to measure");
    snprintf(name, sizeof name, "client.%s_%d", s->tls ? "tls" : "plain", s->conns);
    snprintf(id, sizeof id, "%s_cpu_over_wrk", name);
    lk_figure(id, our_us / wrk_us, "ratio", "<=", 1.35, "wrk");
    snprintf(id, sizeof id, "%s_rate_over_wrk", name);
    lk_figure(id, ours.requests / ours.wall_s / (wrk.requests / wrk.wall_s), "ratio", ">=",
              s->tls ? 0.6 : 0.75, "wrk");
    snprintf(id, sizeof id, "%s_cpu_curl_over_ours", name);
    lk_figure(id, curl_us / our_us, "ratio", ">=", 2, "libcurl multi");
}

int main(void) {
    lk_nginx nginx = lk_nginx_start();
    printf("client: %zu-byte requests, %zu-byte replies, closed loop, %.1f s each\n",
           sizeof body - 1, sizeof LK_COMPLETION - 1, seconds);
    write_wrk_script();
    const setup setups[] = { { 64, false, nginx.plain }, { 1000, false, nginx.plain },
                             { 64, true, nginx.tls },    { 1000, true, nginx.tls } };
    for (size_t i = 0; i < LK__COUNT(setups); i++) compare(&setups[i], nginx.pid);
    lk_stop(nginx.pid);
    return 0;
}
