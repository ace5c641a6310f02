/* bench_tls.c -- handshakes, each side's CPU apart; records; memory; reading the bundle */
#include "bench.h"

enum { BENCH_RECORD = 16384, BENCH_ROUNDS = 2000 };

static const char *bench_certs(const char *name) {
    static char ring[8][600];
    static int next;
    const char *dir = getenv("LK_CERTS");
    char *path = ring[next++ % 8];
    snprintf(path, sizeof ring[0], "%s/%s", dir ? dir : "build/certs", name);
    return path;
}

static double bench_client_s, bench_server_s; /* CPU of each side so far */
static llmkit_env bench_env;

/* Moves what one side has for the other.  Each side's work is done in its acks. */
static size_t bench_move(lk__tls *from, double *from_s, lk__tls *to, double *to_s) {
    size_t have, room, moved = 0;
    while ((lk__tls_wants(from) & LK__TLS_SEND_WIRE) && (lk__tls_wants(to) & LK__TLS_RECV_WIRE)) {
        uint8_t *src = lk__tls_buf(from, LK__TLS_SEND_WIRE, &have);
        uint8_t *dst = lk__tls_buf(to, LK__TLS_RECV_WIRE, &room);
        size_t n = have < room ? have : room;
        memcpy(dst, src, n);
        double start = lk_wall_s();
        lk__tls_ack(from, LK__TLS_SEND_WIRE, n);
        double middle = lk_wall_s();
        lk__tls_ack(to, LK__TLS_RECV_WIRE, n);
        *from_s += middle - start;
        *to_s += lk_wall_s() - middle;
        moved += n;
    }
    return moved;
}

static bool bench_handshake(llmkit_tls *client_tls, llmkit_tls *server_tls, lk__tls **client,
                            lk__tls **server) {
    double start = lk_wall_s();
    *client = lk__tls_open(client_tls, &bench_env, "localhost", 443, NULL);
    double middle = lk_wall_s();
    *server = lk__tls_open(server_tls, &bench_env, NULL, 0, NULL);
    bench_client_s += middle - start;
    bench_server_s += lk_wall_s() - middle;
    if (!*client || !*server) return false;
    while (bench_move(*client, &bench_client_s, *server, &bench_server_s) +
               bench_move(*server, &bench_server_s, *client, &bench_client_s) > 0) {}
    return lk__tls_ready(*client) && lk__tls_ready(*server);
}

static void bench_free(lk__tls *client, lk__tls *server) {
    double start = lk_wall_s();
    lk__tls_free(client);
    double middle = lk_wall_s();
    lk__tls_free(server);
    bench_client_s += middle - start;
    bench_server_s += lk_wall_s() - middle;
}

static llmkit_tls *bench_shared(const char *ca, const char *leaf) {
    char pem[64], key[64];
    llmkit_error error = { 0 };
    snprintf(pem, sizeof pem, "%s.pem", leaf ? leaf : "");
    snprintf(key, sizeof key, "%s.key", leaf ? leaf : "");
    llmkit_tls_desc desc = { .ca_file = ca, .cert_file = leaf ? bench_certs(pem) : NULL,
                             .key_file = leaf ? bench_certs(key) : NULL };
    llmkit_tls *tls = llmkit_tls_create(&desc, &error);
    if (!tls) fprintf(stderr, "%s (tests/make_certs makes certificates)\n", error.message);
    if (!tls) exit(1);
    return tls;
}

/* Medians over single handshakes, so that a neighbour's burst does not count. */
static void bench_handshakes(const char *id, const char *leaf, bool resume, size_t rounds,
                             double bar, const char *peer) {
    llmkit_tls *client_tls = bench_shared(bench_certs("bundle.pem"), NULL);
    llmkit_tls *server_tls = bench_shared(NULL, leaf);
    lk__tls *client, *server;
    double *each_client = calloc(rounds, sizeof(double));
    double *each_server = calloc(rounds, sizeof(double));
    char name[80];
    lk__tls_peer host;
    uint8_t key[LK__SESSION_KEY];
    lk__tls_peer_set(&host, "localhost", NULL);
    lk__session_key(key, &host, 443);
    if (resume && bench_handshake(client_tls, server_tls, &client, &server))
        bench_free(client, server);
    for (size_t i = 0; i < rounds; i++) {
        if (!resume) lk__session_forget(client_tls, key);
        bench_client_s = bench_server_s = 0;
        if (!bench_handshake(client_tls, server_tls, &client, &server) ||
            lk__tls_resumed(client) != resume)
            exit(1);
        bench_free(client, server);
        each_client[i] = bench_client_s * 1e6;
        each_server[i] = bench_server_s * 1e6;
    }
    snprintf(name, sizeof name, "tls.%s_client_us", id);
    lk_figure(name, lk_median(each_client, rounds), "us", bar > 0 ? "<=" : NULL, bar, peer);
    snprintf(name, sizeof name, "tls.%s_server_us", id);
    lk_figure(name, lk_median(each_server, rounds), "us", NULL, 0, NULL);
    free(each_client);
    free(each_server);
    llmkit_tls_release(client_tls);
    llmkit_tls_release(server_tls);
}

/* The yardstick: BearSSL's full profile set up anew for each connection, as its samples do it. */
static double bench_plain_resumed_us(void) {
    enum { ROUNDS = 200 };
    static double each[ROUNDS];
    static unsigned char buffer[BR_SSL_BUFSIZE_MONO];
    static br_ssl_client_context c;
    static br_x509_minimal_context x;
    br_ssl_session_parameters session = { 0 };
    llmkit_tls *client_tls = bench_shared(bench_certs("bundle.pem"), NULL);
    llmkit_tls *server_tls = bench_shared(NULL, "rsa");
    for (size_t i = 0; i < ROUNDS; i++) {
        lk__tls *server = lk__tls_open(server_tls, &bench_env, NULL, 0, NULL);
        double start = lk_wall_s(), spent;
        br_ssl_client_init_full(&c, &x, client_tls->anchors.list, client_tls->anchors.num);
        br_ssl_engine_set_buffer(&c.eng, buffer, sizeof buffer, 0);
        br_ssl_engine_set_session_parameters(&c.eng, &session);
        br_ssl_client_reset(&c, "localhost", 1);
        spent = lk_wall_s() - start;
        for (size_t have, room, n = 1; n > 0;) {
            uint8_t *src, *dst;
            n = 0;
            while ((src = br_ssl_engine_sendrec_buf(&c.eng, &have)) != NULL &&
                   (dst = lk__tls_buf(server, LK__TLS_RECV_WIRE, &room)) != NULL) {
                n = have < room ? have : room;
                memcpy(dst, src, n);
                start = lk_wall_s();
                br_ssl_engine_sendrec_ack(&c.eng, n);
                spent += lk_wall_s() - start;
                lk__tls_ack(server, LK__TLS_RECV_WIRE, n);
            }
            while ((src = lk__tls_buf(server, LK__TLS_SEND_WIRE, &have)) != NULL &&
                   (dst = br_ssl_engine_recvrec_buf(&c.eng, &room)) != NULL) {
                n = have < room ? have : room;
                memcpy(dst, src, n);
                lk__tls_ack(server, LK__TLS_SEND_WIRE, n);
                start = lk_wall_s();
                br_ssl_engine_recvrec_ack(&c.eng, n);
                spent += lk_wall_s() - start;
            }
        }
        if (!lk__tls_ready(server) || lk__tls_resumed(server) != (i > 0)) exit(1);
        br_ssl_engine_get_session_parameters(&c.eng, &session);
        lk__tls_free(server);
        each[i] = spent * 1e6;
    }
    llmkit_tls_release(client_tls);
    llmkit_tls_release(server_tls);
    return lk_median(each, ROUNDS);
}

typedef struct bench_stream {
    lk__tls *client, *server;
    size_t   bytes; /* of each record */
} bench_stream;

/* One record from the server to the client: sealed, copied, opened. */
static void bench_one_record(void *user) {
    bench_stream *s = user;
    double ignored = 0;
    size_t len;
    uint8_t *at = lk__tls_buf(s->server, LK__TLS_SEND_APP, &len);
    at[0] = 'x';
    lk__tls_ack(s->server, LK__TLS_SEND_APP, len < s->bytes ? len : s->bytes);
    lk__tls_flush(s->server);
    bench_move(s->server, &ignored, s->client, &ignored);
    while (lk__tls_buf(s->client, LK__TLS_RECV_APP, &len))
        lk__tls_ack(s->client, LK__TLS_RECV_APP, len);
}

static void bench_records(void) {
    llmkit_tls *client_tls = bench_shared(bench_certs("bundle.pem"), NULL);
    llmkit_tls *server_tls = bench_shared(NULL, "rsa");
    bench_stream s = { .bytes = BENCH_RECORD };
    if (!bench_handshake(client_tls, server_tls, &s.client, &s.server)) exit(1);
    double ns = lk_time_ns(bench_one_record, &s, BENCH_ROUNDS);
    lk_figure("tls.records_16k_gb_s", BENCH_RECORD / ns, "GB/s", NULL, 0, "sealed and opened");
    s.bytes = 700;
    ns = lk_time_ns(bench_one_record, &s, BENCH_ROUNDS * 10);
    lk_figure("tls.record_700_ns", ns, "ns", NULL, 0, "sealed and opened; AES-GCM alone 2 x 367");
    bench_free(s.client, s.server);
    llmkit_tls_release(client_tls);
    llmkit_tls_release(server_tls);
}

static void bench_bundle(void) {
    const char *path = "/etc/ssl/certs/ca-certificates.crt";
    if (access(path, R_OK) != 0) return;
    double tries[15];
    for (size_t i = 0; i < LK__COUNT(tries); i++) {
        double start = lk_wall_s();
        llmkit_tls *tls = bench_shared(path, NULL);
        tries[i] = (lk_wall_s() - start) * 1e3;
        llmkit_tls_release(tls);
    }
    lk_figure("tls.system_bundle_ms", lk_best(tries, LK__COUNT(tries)), "ms", "<=", 5,
              "BearSSL's decoders 45-70 ms");
}

/* Resident memory of 1,000 idle client connections. */
static long bench_resident_kb(void) {
    long pages = 0, total = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f) return 0;
    if (fscanf(f, "%ld %ld", &total, &pages) != 2) pages = 0;
    fclose(f);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static void bench_memory(void) {
    enum { NUM = 1000 };
    static lk__tls *clients[NUM];
    llmkit_tls *client_tls = bench_shared(bench_certs("bundle.pem"), NULL);
    llmkit_tls *server_tls = bench_shared(NULL, "rsa");
    lk__tls *server;
    long before = 0;
    for (size_t i = 0; i < NUM; i++) {
        if (i == 20) before = bench_resident_kb();
        if (!bench_handshake(client_tls, server_tls, &clients[i], &server)) exit(1);
        lk__tls_free(server);
    }
    long after = bench_resident_kb();
    if (before && after)
        lk_figure("tls.idle_connection_kb", (double)(after - before) / (NUM - 20), "KB", "<=", 24,
                  "the engine alone, without its wire");
    for (size_t i = 0; i < NUM; i++) lk__tls_free(clients[i]);
    llmkit_tls_release(client_tls);
    llmkit_tls_release(server_tls);
}

int main(void) {
    bench_env = lk__env_fill(NULL);
    puts("tls: two engines in memory; CPU of each side apart");
    bench_handshakes("full_rsa", "rsa", false, 200, 0, NULL);
    bench_handshakes("full_ec", "ec", false, 100, 0, NULL);
    char peer[64];
    double plain = bench_plain_resumed_us();
    snprintf(peer, sizeof peer, "BearSSL set up anew %.0f us", plain);
    bench_handshakes("resumed", "rsa", true, 1000, plain * 0.6, peer);
    bench_records();
    bench_bundle();
    bench_memory();
    return 0;
}
