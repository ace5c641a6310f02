/* test_tls.c -- TLS engines against each other in memory, and against the openssl command */
#include "test.h"
#ifdef LLMKIT__SPLIT
#include "net/tls_trust.c"
#include "net/tls.c"
#endif

#if LLMKIT_WITH_TLS

#include <sys/wait.h>

/* ---- Certificates ----------------------------------------------------------------------------*/

static char certs[512];

/* LK_CERTS, or build/certs, made by tests/make_certs beside this file where it is not there yet. */
static void find_certs(void) {
    const char *dir = getenv("LK_CERTS");
    snprintf(certs, sizeof certs, "%s", dir ? dir : "build/certs");
    char source[256], command[1024];
    snprintf(source, sizeof source, "%s", __FILE__);
    char *slash = strrchr(source, '/');
    if (slash) *slash = '\0';
    snprintf(command, sizeof command, "%s/make_certs '%s'", slash ? source : ".", certs);
    if (system(command) != 0) fprintf(stderr, "%s failed\n", command);
}

/* One of eight buffers, so that a desc can hold several. */
static const char *cert(const char *name) {
    static char ring[8][600];
    static int next;
    char *path = ring[next++ % 8];
    snprintf(path, sizeof ring[0], "%s/%s", certs, name);
    return path;
}

static char *slurp(const char *path) {
    static char text[8][16384];
    static int next;
    char *out = text[next++ % 8];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    out[fread(out, 1, sizeof text[0] - 1, f)] = '\0';
    fclose(f);
    return out;
}

static llmkit_tls *make(lk_world *w, const char *ca, const char *pem, const char *key) {
    llmkit_error error = { 0 };
    llmkit_tls_desc desc = { .env = w->env };
    if (ca) desc.ca_file = cert(ca);
    if (pem) desc.cert_file = cert(pem);
    if (key) desc.key_file = cert(key);
    llmkit_tls *tls = llmkit_tls_create(&desc, &error);
    if (!tls) print_error("%s\n", error.message);
    assert_non_null(tls);
    return tls;
}

/* ---- Two engines back to back ----------------------------------------------------------------*/

typedef struct pair {
    lk_world    client_world, server_world;
    llmkit_tls *client_tls, *server_tls;
    lk__tls    *client, *server;
    size_t      step; /* most bytes moved at once; 0: all */
} pair;

static void pair_init(pair *p, const char *ca, const char *pem, const char *key) {
    memset(p, 0, sizeof *p);
    lk_world_init(&p->client_world);
    lk_world_init(&p->server_world);
    p->client_world.env = lk__env_fill(&p->client_world.env);
    p->server_world.env = lk__env_fill(&p->server_world.env);
    p->client_tls = make(&p->client_world, ca, NULL, NULL);
    p->server_tls = make(&p->server_world, NULL, pem, key);
}

static void pair_open(pair *p, const char *host) {
    llmkit_error error = { 0 };
    p->client = lk__tls_open(p->client_tls, &p->client_world.env, host, 443, &error);
    if (!p->client) print_error("%s\n", error.message);
    p->server = lk__tls_open(p->server_tls, &p->server_world.env, NULL, 0, &error);
    if (!p->server) print_error("%s\n", error.message);
    assert_true(p->client && p->server);
}

static void pair_close(pair *p) {
    lk__tls_free(p->client);
    lk__tls_free(p->server);
    p->client = p->server = NULL;
}

static void pair_free(pair *p) {
    pair_close(p);
    llmkit_tls_release(p->client_tls);
    llmkit_tls_release(p->server_tls);
    assert_no_leak(&p->client_world);
    assert_no_leak(&p->server_world);
}

static size_t move(lk__tls *from, lk__tls *to, size_t step) {
    size_t have, room, moved = 0;
    while ((lk__tls_wants(from) & LK__TLS_SEND_WIRE) && (lk__tls_wants(to) & LK__TLS_RECV_WIRE)) {
        uint8_t *src = lk__tls_buf(from, LK__TLS_SEND_WIRE, &have);
        uint8_t *dst = lk__tls_buf(to, LK__TLS_RECV_WIRE, &room);
        size_t n = have < room ? have : room;
        if (step && n > step) n = step;
        memcpy(dst, src, n);
        lk__tls_ack(from, LK__TLS_SEND_WIRE, n);
        lk__tls_ack(to, LK__TLS_RECV_WIRE, n);
        moved += n;
    }
    return moved;
}

/* Until nothing moves any more. */
static void pump(pair *p) {
    while (move(p->client, p->server, p->step) + move(p->server, p->client, p->step) > 0) {}
}

static void pair_connect(pair *p, const char *host) {
    pair_open(p, host);
    pump(p);
    llmkit_error error = { 0 };
    if (lk__tls_why(p->client, &error)) print_error("%s\n", error.message);
    assert_true(lk__tls_ready(p->client));
    assert_true(lk__tls_ready(p->server));
}

/* Sends text one way and sees it come out. */
static void say(pair *p, lk__tls *from, lk__tls *to, const char *text) {
    size_t len;
    uint8_t *at = lk__tls_buf(from, LK__TLS_SEND_APP, &len);
    assert_true(len >= strlen(text));
    memcpy(at, text, strlen(text));
    lk__tls_ack(from, LK__TLS_SEND_APP, strlen(text));
    lk__tls_flush(from);
    pump(p);
    at = lk__tls_buf(to, LK__TLS_RECV_APP, &len);
    assert_non_null(at);
    assert_str(lk__str((char *)at, len), text);
    lk__tls_ack(to, LK__TLS_RECV_APP, len);
}

static void refused(pair *p, const char *host, llmkit_err code, int tls_code, const char *words) {
    llmkit_error error = { 0 };
    pair_open(p, host);
    pump(p);
    assert_false(lk__tls_ready(p->client));
    assert_true(lk__tls_wants(p->client) & LK__TLS_CLOSED);
    assert_err(lk__tls_why(p->client, &error), code);
    assert_int_equal(error.code, code);
    assert_false(error.retryable);
    assert_int_equal(error.tls_code, tls_code);
    if (!strstr(error.message, words)) print_error("%s\n", error.message);
    assert_non_null(strstr(error.message, words));
    pair_close(p);
    assert_int_equal(llmkit_tls_read(p->client_tls).failed, 1);
}

/* ---- In memory -------------------------------------------------------------------------------*/

static void a_full_handshake_carries_bytes_both_ways(void **state) {
    (void)state;
    static const char *const leaf[][2] = {
        { "rsa.pem", "rsa.key" },     { "rsa.pem", "rsa.old.key" }, { "ec.pem", "ec.key" },
        { "ec.pem", "ec.old.key" },   { "ec384.pem", "ec384.key" }, { "chain.pem", "chain.key" },
        { "ec521.pem", "ec521.key" },
    };
    for (size_t i = 0; i < LK__COUNT(leaf); i++) {
        pair p;
        pair_init(&p, i < 6 ? "bundle.pem" : "ec521.pem", leaf[i][0], leaf[i][1]);
        pair_connect(&p, "localhost");
        assert_false(lk__tls_resumed(p.client));
        say(&p, p.client, p.server, "question");
        say(&p, p.server, p.client, "answer");
        say(&p, p.client, p.server, "another");
        pair_free(&p);
    }
}

static void bytes_may_come_one_by_one(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "ca_rsa.pem", "rsa.pem", "rsa.key");
    p.step = 1;
    pair_connect(&p, "localhost");
    say(&p, p.client, p.server, "question");
    say(&p, p.server, p.client, "answer");
    pair_free(&p);
}

static void both_sides_prefer_x25519(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "ca_rsa.pem", "rsa.pem", "rsa.key");
    pair_connect(&p, "localhost");
    assert_int_equal(br_ssl_engine_get_ecdhe_curve(p.client->eng), BR_EC_curve25519);
    assert_int_equal(br_ssl_engine_get_version(p.client->eng), BR_TLS12);
    pair_free(&p);
}

static void a_second_connection_resumes_the_session(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "ca_rsa.pem", "rsa.pem", "rsa.key");
    assert_false(lk__tls_knows(p.client_tls, "localhost", 443));
    pair_connect(&p, "localhost");
    assert_true(lk__tls_knows(p.client_tls, "LOCALHOST.", 443));
    assert_false(lk__tls_knows(p.client_tls, "localhost", 444));
    assert_false(lk__tls_knows(p.client_tls, "127.0.0.1", 443));
    pair_close(&p);
    for (int i = 0; i < 3; i++) {
        pair_connect(&p, "localhost");
        assert_true(lk__tls_resumed(p.client));
        assert_true(lk__tls_resumed(p.server));
        say(&p, p.client, p.server, "again");
        pair_close(&p);
    }
    llmkit_tls_stats client = llmkit_tls_read(p.client_tls), server = llmkit_tls_read(p.server_tls);
    assert_int_equal(client.handshakes, 4);
    assert_int_equal(client.resumed, 3);
    assert_int_equal(client.failed, 0);
    assert_int_equal(client.anchors, 1);
    assert_int_equal(server.handshakes, 4);
    assert_int_equal(server.resumed, 3);
    pair_free(&p);
}

static void a_session_the_server_has_lost_leads_to_a_full_handshake(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "ca_rsa.pem", "rsa.pem", "rsa.key");
    pair_connect(&p, "localhost");
    pair_close(&p);
    llmkit_tls_release(p.server_tls);
    p.server_tls = make(&p.server_world, NULL, "rsa.pem", "rsa.key");
    pair_connect(&p, "localhost");
    assert_false(lk__tls_resumed(p.client));
    assert_false(lk__tls_resumed(p.server));
    pair_close(&p);
    pair_connect(&p, "localhost");
    assert_true(lk__tls_resumed(p.client));
    pair_free(&p);
}

static void a_session_is_forgotten_after_a_fatal_error(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "ca_rsa.pem", "rsa.pem", "rsa.key");
    pair_connect(&p, "localhost");
    size_t len;
    uint8_t *at = lk__tls_buf(p.client, LK__TLS_RECV_WIRE, &len);
    memset(at, 0xff, 5);
    lk__tls_ack(p.client, LK__TLS_RECV_WIRE, 5);
    llmkit_error error = { 0 };
    assert_err(lk__tls_why(p.client, &error), LLMKIT_E_TLS);
    pair_close(&p);
    assert_false(lk__tls_knows(p.client_tls, "localhost", 443));
    assert_int_equal(llmkit_tls_read(p.client_tls).failed, 0);
    pair_free(&p);
}

static br_ssl_session_parameters session_of(unsigned n) {
    br_ssl_session_parameters s = { .session_id_len = 32, .version = BR_TLS12 };
    memset(s.master_secret, (int)n, sizeof s.master_secret);
    return s;
}

static void session_key_of(uint8_t key[LK__SESSION_KEY], unsigned n) {
    lk__tls_peer peer;
    char host[32];
    snprintf(host, sizeof host, "host%u.test", n);
    assert_ok(lk__tls_peer_set(&peer, host, NULL));
    lk__session_key(key, &peer, 443);
}

static void the_session_that_was_idle_longest_makes_room(void **state) {
    (void)state;
    lk_world w;
    lk_world_init_virtual(&w, 1);
    llmkit_tls_desc desc = { .env = w.env, .max_sessions = 1 };
    llmkit_tls *tls = llmkit_tls_create(&desc, NULL);
    uint8_t key[LK__SESSION_KEY];
    br_ssl_session_parameters found;
    for (unsigned i = 0; i < LK__SESSION_WAYS; i++) {
        br_ssl_session_parameters s = session_of(i);
        session_key_of(key, i);
        lk__session_keep(tls, key, &s);
    }
    assert_int_equal(tls->num_sessions, LK__SESSION_WAYS);
    session_key_of(key, 0);
    assert_true(lk__session_find(tls, key, &found)); /* used again: 1 is the oldest now */
    assert_int_equal(found.master_secret[47], 0);
    session_key_of(key, 99);
    br_ssl_session_parameters s = session_of(99);
    lk__session_keep(tls, key, &s);
    for (unsigned i = 0; i < LK__SESSION_WAYS; i++) {
        session_key_of(key, i);
        assert_int_equal(lk__session_find(tls, key, &found), i != 1);
        if (i != 1) assert_int_equal(found.master_secret[0], i);
    }
    session_key_of(key, 99);
    assert_true(lk__session_find(tls, key, &found));
    lk__session_forget(tls, key);
    assert_false(lk__session_find(tls, key, &found));
    session_key_of(key, 2);
    w.now_ns = 24LL * 3600 * LK__NS_PER_S + 1;
    assert_true(lk__session_find(tls, key, NULL));
    w.now_ns++;
    assert_false(lk__session_find(tls, key, NULL)); /* a day is the most */
    llmkit_tls_release(tls);
    assert_no_leak(&w);
}

static void large_data_passes_both_ways(void **state) {
    (void)state;
    enum { TOTAL = 3000000 };
    pair p;
    pair_init(&p, "ca_ec.pem", "ec.pem", "ec.key");
    pair_connect(&p, "localhost");
    for (int way = 0; way < 2; way++) {
        lk__tls *from = way ? p.server : p.client, *to = way ? p.client : p.server;
        size_t sent = 0, got = 0, len;
        while (got < TOTAL) {
            uint8_t *at = lk__tls_buf(from, LK__TLS_SEND_APP, &len);
            if (len > TOTAL - sent) len = TOTAL - sent;
            for (size_t i = 0; i < len; i++) at[i] = (uint8_t)((sent + i) * 31 % 251);
            if (len > 0) lk__tls_ack(from, LK__TLS_SEND_APP, len);
            sent += len;
            lk__tls_flush(from);
            move(from, to, 1000);
            at = lk__tls_buf(to, LK__TLS_RECV_APP, &len);
            for (size_t i = 0; i < len; i++) assert_int_equal(at[i], (got + i) * 31 % 251);
            if (len > 0) lk__tls_ack(to, LK__TLS_RECV_APP, len);
            got += len;
        }
        assert_int_equal(sent, TOTAL);
    }
    pair_free(&p);
}

static void close_notify_ends_in_order(void **state) {
    (void)state;
    llmkit_error error = { 0 };
    pair p;
    pair_init(&p, "ca_rsa.pem", "rsa.pem", "rsa.key");
    pair_connect(&p, "localhost");
    lk__tls_finish(p.server);
    pump(&p);
    assert_int_equal(lk__tls_wants(p.client), LK__TLS_CLOSED);
    assert_int_equal(lk__tls_wants(p.server), LK__TLS_CLOSED);
    assert_ok(lk__tls_why(p.client, &error));
    assert_ok(lk__tls_why(p.server, &error));
    assert_true(lk__tls_ready(p.client));
    pair_close(&p);
    assert_true(lk__tls_knows(p.client_tls, "localhost", 443));
    pair_free(&p);
}

static void a_stream_that_just_stops_is_not_closed(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "ca_rsa.pem", "rsa.pem", "rsa.key");
    pair_connect(&p, "localhost");
    size_t len;
    uint8_t *at = lk__tls_buf(p.server, LK__TLS_SEND_APP, &len);
    memset(at, 'x', 100);
    lk__tls_ack(p.server, LK__TLS_SEND_APP, 100);
    lk__tls_flush(p.server);
    size_t have, room; /* half of the record, no more */
    at = lk__tls_buf(p.server, LK__TLS_SEND_WIRE, &have);
    for (size_t i = 0; i < have / 2;) {
        uint8_t *to = lk__tls_buf(p.client, LK__TLS_RECV_WIRE, &room);
        if (room > have / 2 - i) room = have / 2 - i;
        memcpy(to, at + i, room);
        lk__tls_ack(p.client, LK__TLS_RECV_WIRE, room);
        i += room;
    }
    assert_int_equal(lk__tls_wants(p.client), LK__TLS_RECV_WIRE); /* neither closed nor data */
    assert_true(lk__tls_ready(p.client));
    pair_free(&p);
}

static void a_certificate_for_another_host_is_refused(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "bundle.pem", "other.pem", "other.key");
    refused(&p, "localhost", LLMKIT_E_CERT, BR_ERR_X509_BAD_SERVER_NAME,
            "the certificate of localhost is for other names");
    pair_connect(&p, "Other.Test.");
    pair_free(&p);
}

static void an_expired_certificate_is_refused(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "bundle.pem", "expired.pem", "expired.key");
    refused(&p, "localhost", LLMKIT_E_CERT, BR_ERR_X509_EXPIRED, "check the clock");
    pair_free(&p);
}

static void a_certificate_of_the_future_is_refused(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "bundle.pem", "future.pem", "future.key");
    refused(&p, "localhost", LLMKIT_E_CERT, BR_ERR_X509_EXPIRED, "not yet valid");
    pair_free(&p);
}

static void a_foreign_ca_is_refused(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "ca_ec.pem", "rsa.pem", "rsa.key");
    refused(&p, "localhost", LLMKIT_E_CERT, BR_ERR_X509_NOT_TRUSTED, "ca_file");
    pair_free(&p);
}

static void a_leaf_is_no_ca(void **state) { /* trusted for itself only */
    (void)state;
    pair p;
    pair_init(&p, "rsa.pem", "rsa.pem", "rsa.key");
    pair_connect(&p, "localhost");
    pair_free(&p);
    pair_init(&p, "chain_ca.pem", "chain.pem", "chain.key"); /* an intermediate as an anchor */
    pair_connect(&p, "localhost");
    pair_free(&p);
    pair_init(&p, "chain.pem", "ec.pem", "ec.key");
    refused(&p, "localhost", LLMKIT_E_CERT, BR_ERR_X509_NOT_TRUSTED, "ca_file");
    pair_free(&p);
}

static void a_self_signed_certificate_is_refused_unless_named(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "bundle.pem", "self.pem", "self.key");
    refused(&p, "localhost", LLMKIT_E_CERT, BR_ERR_X509_NOT_TRUSTED, "ca_file");
    pair_free(&p);
    pair_init(&p, "self.pem", "self.pem", "self.key");
    pair_connect(&p, "localhost");
    pair_free(&p);
}

static void wildcards_stand_for_one_label(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "bundle.pem", "ec.pem", "ec.key");
    pair_connect(&p, "api.wild.test");
    pair_close(&p);
    refused(&p, "a.b.wild.test", LLMKIT_E_CERT, BR_ERR_X509_BAD_SERVER_NAME, "other names");
    pair_free(&p);
}

static void addresses_match_only_address_entries(void **state) {
    (void)state;
    static const char *const good[] = { "127.0.0.1", "::1", "0:0:0:0:0:0:0:1", "::1%lo" };
    pair p;
    pair_init(&p, "bundle.pem", "ip.pem", "ip.key");
    for (size_t i = 0; i < LK__COUNT(good); i++) {
        pair_connect(&p, good[i]);
        assert_string_equal(br_ssl_engine_get_server_name(p.server->eng), ""); /* RFC 6066 3 */
        pair_close(&p);
    }
    refused(&p, "127.0.0.2", LLMKIT_E_CERT, BR_ERR_X509_BAD_SERVER_NAME, "127.0.0.2");
    pair_free(&p);
    static const char *const bad[] = { "::2", "localhost", "::ffff:127.0.0.1" };
    for (size_t i = 0; i < LK__COUNT(bad); i++) {
        pair_init(&p, "bundle.pem", "ip.pem", "ip.key");
        refused(&p, bad[i], LLMKIT_E_CERT, BR_ERR_X509_BAD_SERVER_NAME, "other names");
        pair_free(&p);
    }
}

static void an_address_as_a_dns_name_does_not_match(void **state) {
    (void)state;
    static const char *const hosts[] = { "127.0.0.1", "::1" };
    for (size_t i = 0; i < LK__COUNT(hosts); i++) {
        pair p;
        pair_init(&p, "bundle.pem", "ipdns.pem", "ipdns.key");
        refused(&p, hosts[i], LLMKIT_E_CERT, BR_ERR_X509_BAD_SERVER_NAME, "other names");
        pair_free(&p);
    }
}

static void an_address_still_needs_a_trusted_chain(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "ca_rsa.pem", "ip.pem", "ip.key");
    refused(&p, "127.0.0.1", LLMKIT_E_CERT, BR_ERR_X509_NOT_TRUSTED, "ca_file");
    pair_free(&p);
}

static void hosts_are_brought_to_one_form(void **state) {
    (void)state;
    lk__tls_peer peer;
    llmkit_error error = { 0 };
    assert_ok(lk__tls_peer_set(&peer, "API.Example.COM.", NULL));
    assert_string_equal(peer.name, "api.example.com");
    assert_int_equal(peer.ip_len, 0);
    assert_ok(lk__tls_peer_set(&peer, "10.1.2.3", NULL));
    assert_int_equal(peer.ip_len, 4);
    assert_memory_equal(peer.ip, "\x0a\x01\x02\x03", 4);
    assert_ok(lk__tls_peer_set(&peer, "FE80::1%eth0", NULL));
    assert_int_equal(peer.ip_len, 16);
    assert_string_equal(peer.name, "fe80::1");
    assert_err(lk__tls_peer_set(&peer, "", &error), LLMKIT_E_ARG);
    assert_err(lk__tls_peer_set(&peer, ".", &error), LLMKIT_E_ARG);
    char name[300];
    memset(name, 'a', sizeof name);
    name[255] = '\0';
    assert_ok(lk__tls_peer_set(&peer, name, NULL));
    name[255] = 'a';
    name[256] = '\0';
    assert_err(lk__tls_peer_set(&peer, name, &error), LLMKIT_E_ARG);
}

/* Every byte of the server's first flight, changed, must not lead to a handshake that completes. */
static void garbage_on_the_wire_is_refused(void **state) {
    (void)state;
    static const char *const noise[] = {
        "HTTP/1.1 400 Bad Request\r\n\r\n", "\x17\x03\x03\x00\x02\x0e\x00",
        "\x15\x03\x03\x00\x02\x02\x28",     "\xff\xff\xff\xff\xff\xff\xff",
        "\x16\x03\x03\xff\xff\x00\x00",     "SSH-2.0-OpenSSH_9.2\r\n",
    };
    pair p;
    pair_init(&p, "ca_rsa.pem", "rsa.pem", "rsa.key");
    for (size_t i = 0; i < LK__COUNT(noise); i++) {
        llmkit_error error = { 0 };
        pair_open(&p, "localhost");
        for (int side = 0; side < 2; side++) {
            lk__tls *t = side ? p.client : p.server;
            size_t len, have;
            if (side) /* the hello goes out first: the buffer is half-duplex */
                while (lk__tls_buf(t, LK__TLS_SEND_WIRE, &have))
                    lk__tls_ack(t, LK__TLS_SEND_WIRE, have);
            for (size_t at = 0; at < 7; at += len) {
                uint8_t *to = lk__tls_buf(t, LK__TLS_RECV_WIRE, &len);
                if (!to) break;
                if (len > 7 - at) len = 7 - at;
                memcpy(to, noise[i] + at, len);
                lk__tls_ack(t, LK__TLS_RECV_WIRE, len);
            }
            assert_true(lk__tls_wants(t) & (LK__TLS_CLOSED | LK__TLS_SEND_WIRE));
            assert_err(lk__tls_why(t, &error), LLMKIT_E_TLS);
            assert_true(strlen(error.message) > 20);
            assert_false(lk__tls_ready(t));
        }
        pair_close(&p);
    }
    pair_free(&p);
}

static void a_flipped_bit_ends_the_handshake(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "ca_ec.pem", "ec.pem", "ec.key");
    for (size_t flip = 0; flip < 1200; flip += 61) {
        pair_open(&p, "localhost");
        size_t at = 0, have, room, n = 1;
        while (n > 0) {
            n = move(p.client, p.server, 0);
            while ((lk__tls_wants(p.server) & LK__TLS_SEND_WIRE) &&
                   (lk__tls_wants(p.client) & LK__TLS_RECV_WIRE)) {
                uint8_t *src = lk__tls_buf(p.server, LK__TLS_SEND_WIRE, &have);
                uint8_t *dst = lk__tls_buf(p.client, LK__TLS_RECV_WIRE, &room);
                size_t len = have < room ? have : room;
                memcpy(dst, src, len);
                if (flip >= at && flip < at + len) dst[flip - at] ^= 0x10;
                at += len;
                n += len;
                lk__tls_ack(p.server, LK__TLS_SEND_WIRE, len);
                lk__tls_ack(p.client, LK__TLS_RECV_WIRE, len);
            }
        }
        assert_true(at > 0);
        assert_false(lk__tls_ready(p.client) && flip < at);
        pair_close(&p);
    }
    pair_free(&p);
}

static void no_server_without_a_certificate(void **state) {
    (void)state;
    lk_world w;
    lk_world_init(&w);
    w.env = lk__env_fill(&w.env);
    llmkit_error error = { 0 };
    llmkit_tls *tls = make(&w, "ca_rsa.pem", NULL, NULL);
    assert_false(lk__tls_has_identity(tls));
    assert_null(lk__tls_open(tls, &w.env, NULL, 0, &error));
    assert_int_equal(error.code, LLMKIT_E_ARG);
    llmkit_tls_release(tls);
    assert_no_leak(&w);
}

static void refused_allocations_are_survived(void **state) {
    (void)state;
    lk_world w;
    lk_world_init(&w);
    w.env = lk__env_fill(&w.env);
    unsigned long done = 0;
    LK_EACH_REFUSAL(&w) {
        llmkit_error error = { 0 };
        llmkit_tls_desc d = { .env = w.env, .ca_file = cert("bundle.pem"),
                              .cert_file = cert("chain.pem"), .key_file = cert("chain.key") };
        llmkit_tls *tls = llmkit_tls_create(&d, &error);
        if (!tls) {
            assert_int_equal(error.code, LLMKIT_E_NOMEM);
            assert_true(w.refused);
            continue;
        }
        pair p = { .client_tls = tls };
        p.server = lk__tls_open(tls, &w.env, NULL, 0, &error);
        if (p.server) p.client = lk__tls_open(tls, &w.env, "127.0.0.1", 443, &error);
        if (p.client) {
            pump(&p);
            if (!lk__tls_ready(p.client)) assert_err(lk__tls_why(p.client, &error), LLMKIT_E_NOMEM);
            done += lk__tls_ready(p.client);
        } else {
            assert_int_equal(error.code, LLMKIT_E_NOMEM);
        }
        pair_close(&p);
        llmkit_tls_release(tls);
    }
    assert_true(done >= 1);
}

static void an_idle_connection_takes_less_than_24_kb(void **state) {
    (void)state;
    pair p;
    pair_init(&p, "bundle.pem", "rsa.pem", "rsa.key");
    pair_connect(&p, "localhost"); /* the tables are there now */
    pair_close(&p);
    long client = p.client_world.bytes, server = p.server_world.bytes;
    pair_connect(&p, "localhost");
    assert_true(p.client_world.bytes - client < 21500);
    assert_true(p.server_world.bytes - server < 21500);
    pair_free(&p);
}

/* ---- Texts and files -------------------------------------------------------------------------*/

static void create_fails(llmkit_tls_desc desc, llmkit_err code, const char *words) {
    lk_world w;
    lk_world_init(&w);
    desc.env = w.env;
    llmkit_error error = { 0 };
    assert_null(llmkit_tls_create(&desc, &error));
    assert_err(error.code, code);
    if (!strstr(error.message, words)) print_error("%s\n", error.message);
    assert_non_null(strstr(error.message, words));
    assert_null(llmkit_tls_create(&desc, NULL));
    assert_no_leak(&w);
}

static void mistakes_in_a_desc_are_named(void **state) {
    (void)state;
    create_fails((llmkit_tls_desc){ ._guard1 = 1 }, LLMKIT_E_NOT_ZEROED, "llmkit_tls_desc");
    create_fails((llmkit_tls_desc){ .ca_file = "/nowhere/ca.pem" }, LLMKIT_E_IO, "/nowhere/ca.pem");
    create_fails((llmkit_tls_desc){ .ca_file = certs }, LLMKIT_E_IO, certs);
    create_fails((llmkit_tls_desc){ .ca_pem = "" }, LLMKIT_E_ARG, "ca_pem");
    create_fails((llmkit_tls_desc){ .ca_file = cert("rsa.key") }, LLMKIT_E_ARG, "rsa.key");
    create_fails((llmkit_tls_desc){ .ca_file = cert("ed25519.pem") }, LLMKIT_E_ARG, "ed25519.pem");
    create_fails((llmkit_tls_desc){ .ca_file = "/dev/zero" }, LLMKIT_E_TOO_BIG, "8 MiB");
    create_fails((llmkit_tls_desc){ .ca_file = "a", .ca_pem = "b" }, LLMKIT_E_ARG, "ca_pem");
    create_fails((llmkit_tls_desc){ .cert_file = "a", .cert_pem = "b" }, LLMKIT_E_ARG, "cert_pem");
    create_fails((llmkit_tls_desc){ .cert_pem = "a", .key_file = "a", .key_pem = "b" },
                 LLMKIT_E_ARG, "key_pem");
    create_fails((llmkit_tls_desc){ .cert_file = cert("rsa.pem") }, LLMKIT_E_ARG, "key_file");
    create_fails((llmkit_tls_desc){ .key_file = cert("rsa.key") }, LLMKIT_E_ARG, "cert_file");
    create_fails((llmkit_tls_desc){ .cert_file = cert("rsa.key"), .key_file = cert("rsa.key") },
                 LLMKIT_E_ARG, "no certificate");
    create_fails((llmkit_tls_desc){ .cert_file = cert("rsa.pem"), .key_file = cert("rsa.pem") },
                 LLMKIT_E_ARG, "no private key");
    create_fails((llmkit_tls_desc){ .cert_file = cert("rsa.pem"), .key_file = "/nowhere/key" },
                 LLMKIT_E_IO, "/nowhere/key");
    create_fails((llmkit_tls_desc){ .cert_file = cert("ec.pem"),
                                    .key_file = cert("ec.locked.key") },
                 LLMKIT_E_ARG, "encrypted");
    create_fails((llmkit_tls_desc){ .cert_file = cert("ed25519.pem"),
                                    .key_file = cert("ed25519.key") }, LLMKIT_E_ARG, "RSA up to");
    create_fails((llmkit_tls_desc){ .cert_file = cert("ec.pem"), .key_file = cert("ec384.key") },
                 LLMKIT_E_ARG, "does not belong");
    create_fails((llmkit_tls_desc){ .cert_file = cert("ec.pem"), .key_file = cert("other.key") },
                 LLMKIT_E_ARG, "does not belong");
    create_fails((llmkit_tls_desc){ .cert_file = cert("rsa.pem"),
                                    .key_file = cert("client_rsa.key") }, LLMKIT_E_ARG,
                 "does not belong");
    create_fails((llmkit_tls_desc){ .cert_pem = slurp(cert("rsa.pem")), .key_pem =
                 "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n"
                 "-----END RSA PRIVATE KEY-----\n" }, LLMKIT_E_ARG, "encrypted");
    create_fails((llmkit_tls_desc){ .cert_pem = "-----BEGIN CERTIFICATE-----\n*\n", .key_pem = "" },
                 LLMKIT_E_ARG, "certificate 1");
}

static void a_chain_has_a_most(void **state) {
    (void)state;
    char text[20000] = "";
    const char *one = slurp(cert("ec.pem"));
    for (int i = 0; i < 17; i++) strcat(text, one);
    create_fails((llmkit_tls_desc){ .cert_pem = text, .key_file = cert("ec.key") },
                 LLMKIT_E_TOO_BIG, "16 certificates");
}

static void no_message_shows_a_key(void **state) {
    (void)state;
    char pem[200] = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0LXNlY3JldA==\n-----END PRIVATE KEY-----";
    llmkit_error error = { 0 };
    llmkit_tls_desc d = { .cert_pem = slurp(cert("rsa.pem")), .key_pem = pem };
    assert_null(llmkit_tls_create(&d, &error));
    assert_null(strstr(error.message, "c2Vj"));
    assert_null(strstr(error.message, "secret"));
}

static void texts_do_as_well_as_files(void **state) {
    (void)state;
    lk_world w;
    lk_world_init(&w);
    w.env = lk__env_fill(&w.env);
    llmkit_tls_desc d = { .env = w.env, .ca_pem = slurp(cert("bundle.pem")),
                          .cert_pem = slurp(cert("ec.pem")),
                          .key_pem = slurp(cert("ec.old.key")) };
    llmkit_tls *tls = llmkit_tls_create(&d, NULL);
    assert_non_null(tls);
    assert_int_equal(llmkit_tls_read(tls).anchors, 2);
    assert_true(lk__tls_has_identity(tls));
    pair p = { .client_tls = tls, .server_tls = tls, .client_world = w, .server_world = w };
    p.client = lk__tls_open(tls, &w.env, "localhost", 1, NULL);
    p.server = lk__tls_open(tls, &w.env, NULL, 0, NULL);
    pump(&p);
    assert_true(lk__tls_ready(p.client) && lk__tls_ready(p.server));
    llmkit_tls_release(tls); /* the connections hold their own references */
    say(&p, p.client, p.server, "still here");
    pair_close(&p);
    assert_no_leak(&w);
}

static void certificates_that_bearssl_cannot_use_are_left_out(void **state) {
    (void)state;
    lk_world w;
    lk_world_init(&w);
    char text[20000];
    snprintf(text, sizeof text, "# comment\n%s-----BEGIN CERTIFICATE-----\nAA?\n"
             "-----END CERTIFICATE-----\n%s", slurp(cert("ed25519.pem")), slurp(cert("ca_ec.pem")));
    llmkit_tls_desc d = { .env = w.env, .ca_pem = text };
    llmkit_tls *tls = llmkit_tls_create(&d, NULL);
    assert_non_null(tls);
    assert_int_equal(llmkit_tls_read(tls).anchors, 1);
    assert_non_null(strstr(w.log, "certificate 2"));
    llmkit_tls_release(tls);
    assert_no_leak(&w);
}

static void collect(void *ctx, const void *data, size_t len) {
    lk__buf_add(ctx, data, len);
}

static void same_anchor(const br_x509_trust_anchor *ours, const uint8_t *der, size_t len,
                        const llmkit_env *env) {
    br_x509_decoder_context dec;
    lk__buf dn;
    lk__buf_init(&dn, env, 0);
    br_x509_decoder_init(&dec, collect, &dn);
    br_x509_decoder_push(&dec, der, len);
    br_x509_pkey *key = br_x509_decoder_get_pkey(&dec);
    assert_non_null(key);
    assert_int_equal(ours->dn.len, dn.len);
    assert_memory_equal(ours->dn.data, dn.ptr, dn.len);
    assert_int_equal(ours->flags, br_x509_decoder_isCA(&dec) ? BR_X509_TA_CA : 0);
    assert_int_equal(ours->pkey.key_type, key->key_type);
    if (key->key_type == BR_KEYTYPE_RSA) {
        assert_int_equal(ours->pkey.key.rsa.nlen, key->key.rsa.nlen);
        assert_memory_equal(ours->pkey.key.rsa.n, key->key.rsa.n, key->key.rsa.nlen);
        assert_int_equal(ours->pkey.key.rsa.elen, key->key.rsa.elen);
        assert_memory_equal(ours->pkey.key.rsa.e, key->key.rsa.e, key->key.rsa.elen);
    } else {
        assert_int_equal(ours->pkey.key.ec.curve, key->key.ec.curve);
        assert_int_equal(ours->pkey.key.ec.qlen, key->key.ec.qlen);
        assert_memory_equal(ours->pkey.key.ec.q, key->key.ec.q, key->key.ec.qlen);
    }
    lk__buf_free(&dn);
}

/* BearSSL's decoders of PEM and of certificates are the yardstick for ours. */
static void anchors_are_those_that_bearssl_reads(void **state) {
    (void)state;
    static const char *const system_bundle = "/etc/ssl/certs/ca-certificates.crt";
    lk_world w;
    lk_world_init(&w);
    w.env = lk__env_fill(&w.env);
    const char *path = access(system_bundle, R_OK) == 0 ? system_bundle : cert("bundle.pem");
    llmkit_tls_desc d = { .env = w.env, .ca_file = path };
    llmkit_tls *tls = llmkit_tls_create(&d, NULL);
    assert_non_null(tls);
    FILE *f = fopen(path, "r");
    br_pem_decoder_context pem;
    lk__buf der;
    lk__buf_init(&der, &w.env, 0);
    br_pem_decoder_init(&pem);
    char text[4096];
    size_t n, nth = 0;
    while ((n = fread(text, 1, sizeof text, f)) > 0) {
        for (size_t at = 0; at < n;) {
            at += br_pem_decoder_push(&pem, text + at, n - at);
            int event = br_pem_decoder_event(&pem);
            if (event == BR_PEM_BEGIN_OBJ) {
                lk__buf_clear(&der);
                br_pem_decoder_setdest(&pem, collect, &der);
            } else if (event == BR_PEM_END_OBJ) {
                assert_true(nth < tls->anchors.num);
                same_anchor(&tls->anchors.list[nth++], (uint8_t *)der.ptr, der.len, &w.env);
            }
        }
    }
    fclose(f);
    lk__buf_free(&der);
    assert_int_equal(nth, tls->anchors.num);
    llmkit_tls_release(tls);
    assert_no_leak(&w);
}

static void the_system_bundle_is_read_at_the_first_handshake(void **state) {
    (void)state;
    lk_world w;
    lk_world_init(&w);
    w.env = lk__env_fill(&w.env);
    llmkit_error error = { 0 };
    llmkit_tls_desc d = { .env = w.env };
    setenv("SSL_CERT_FILE", cert("bundle.pem"), 1);
    llmkit_tls *tls = llmkit_tls_create(&d, &error);
    assert_int_equal(llmkit_tls_read(tls).anchors, 0);
    lk__tls *t = lk__tls_open(tls, &w.env, "localhost", 443, &error);
    assert_non_null(t);
    assert_int_equal(llmkit_tls_read(tls).anchors, 2);
    lk__tls_free(t);
    llmkit_tls_release(tls);
    setenv("SSL_CERT_FILE", "/nowhere/bundle.pem", 1);
    tls = llmkit_tls_create(&d, &error);
    assert_non_null(tls);
    assert_null(lk__tls_open(tls, &w.env, "localhost", 443, &error));
    assert_err(error.code, LLMKIT_E_IO);
    assert_false(error.retryable);
    assert_non_null(strstr(error.message, "/nowhere/bundle.pem"));
    llmkit_tls_release(tls);
    unsetenv("SSL_CERT_FILE");
    tls = llmkit_tls_create(&d, &error);
    lk__tls_free(lk__tls_open(tls, &w.env, "localhost", 443, &error));
    if (access("/etc/ssl/certs/ca-certificates.crt", R_OK) == 0)
        assert_true(llmkit_tls_read(tls).anchors > 20);
    llmkit_tls_release(tls);
    assert_no_leak(&w);
}

static void pem_is_read_in_all_its_shapes(void **state) {
    (void)state;
    static const struct { const char *text, *label, *der; bool broken; } rows[] = {
        { "-----BEGIN X-----\nYWJj\n-----END X-----\n", "X", "abc", false },
        { "-----BEGIN X-----\r\nYWJj\r\n-----END X-----", "X", "abc", false },
        { "junk\n-----BEGIN A B-----\nYW\nJj\nZA==\n-----END A B-----\n", "A B", "abcd", false },
        { "-----BEGIN X-----\n YWJjZGU= \n-----END X-----\n", "X", "abcde", false },
        { "-----BEGIN X-----\nYW:Jj\n-----END X-----\n", "X", "abc", true },
        { "-----BEGIN X-----\nYQ==YQ\n-----END X-----\n", "X", "a", true },
        { "-----BEGIN X-----\nYWJj\n", "X", NULL, true },
        { "-----BEGIN X-----\n-----END X-----\n", "X", "", true },
        { "-----BEGIN X", NULL, NULL, false },
        { "-----BEGIN -----", NULL, NULL, false },
        { "----BEGIN X-----\nYWJj\n", NULL, NULL, false },
        { "", NULL, NULL, false },
    };
    uint8_t out[200];
    for (size_t i = 0; i < LK__COUNT(rows); i++) {
        llmkit_str text = lk_guarded_str(rows[i].text);
        lk__pem pem;
        bool found = lk__pem_next(&text, out, &pem);
        assert_int_equal(found, rows[i].label != NULL);
        if (!found) continue;
        assert_str(pem.label, rows[i].label);
        assert_int_equal(pem.broken, rows[i].broken && true);
        if (rows[i].der) assert_str(pem.der, rows[i].der);
        assert_false(lk__pem_next(&text, out, &pem));
    }
    for (unsigned c = 0; c < 256; c++) {
        static const char digits[] =
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        const char *at = c ? strchr(digits, (int)c) : NULL;
        assert_int_equal(lk__pem_digit(c), at ? at - digits + 1 : 0);
    }
}

/* ---- DER -------------------------------------------------------------------------------------*/

static llmkit_str leaf_der(const char *name, uint8_t out[4096]) {
    lk__pem pem;
    llmkit_str text = lk__str_z(slurp(cert(name)));
    assert_true(text.len < 5000);
    assert_true(lk__pem_next(&text, out, &pem));
    return pem.der;
}

static void der_elements_end_inside_their_parent(void **state) {
    (void)state;
    static const struct { const char *bytes; size_t len; bool good; size_t body; } rows[] = {
        { "\x04\x00", 2, true, 0 },
        { "\x04\x01z", 3, true, 1 },
        { "\x04\x81\x01z", 4, true, 1 },
        { "\x04\x82\x00\x01z", 5, true, 1 },
        { "\x04\x83\x00\x00\x01z", 6, true, 1 },
        { "", 0, false, 0 },
        { "\x04", 1, false, 0 },
        { "\x04\x01", 2, false, 0 },
        { "\x04\x02z", 3, false, 0 },
        { "\x04\x80z\x00\x00", 5, false, 0 },
        { "\x04\x81", 2, false, 0 },
        { "\x04\x82\x01", 3, false, 0 },
        { "\x04\x84\x00\x00\x00\x01z", 7, false, 0 },
        { "\x04\x83\xff\xff\xffz", 6, false, 0 },
        { "\x1f\x01z", 3, false, 0 },
    };
    for (size_t i = 0; i < LK__COUNT(rows); i++) {
        llmkit_str in = { lk_guarded(rows[i].bytes, rows[i].len), rows[i].len };
        lk__der der;
        assert_int_equal(lk__der_next(&in, &der), rows[i].good);
        if (rows[i].good) assert_int_equal(der.body.len, rows[i].body);
        assert_int_equal(in.len, rows[i].good ? 0 : rows[i].len);
    }
}

static void certificates_cut_anywhere_are_survived(void **state) {
    (void)state;
    uint8_t der[4096];
    lk__cert c;
    br_x509_pkey key;
    llmkit_str whole = leaf_der("ip.pem", der);
    assert_true(lk__cert_parse(whole, &c));
    assert_true(lk__cert_pkey(&c, &key));
    assert_false(c.is_ca);
    assert_true(lk__cert_has_ip(&c, (const uint8_t *)"\x7f\x00\x00\x01", 4));
    assert_false(lk__cert_has_ip(&c, (const uint8_t *)"\x7f\x00\x00\x01", 3));
    assert_false(lk__cert_has_ip(&c, (const uint8_t *)"\x7f\x00\x00\x02", 4));
    for (size_t n = 0; n < whole.len; n++) {
        llmkit_str cut = { lk_guarded(whole.ptr, n), n };
        assert_false(lk__cert_parse(cut, &c));
    }
    for (size_t i = 0; i < whole.len; i++) {
        char *copy = lk_guarded(whole.ptr, whole.len);
        for (unsigned v = 0; v < 256; v += 5) {
            copy[i] = (char)v;
            if (!lk__cert_parse(lk__str(copy, whole.len), &c)) continue;
            lk__cert_pkey(&c, &key);
            lk__cert_has_ip(&c, (const uint8_t *)"\x7f\x00\x00\x01", 4);
        }
    }
    assert_true(lk__cert_parse(leaf_der("ca_rsa.pem", der), &c));
    assert_true(c.is_ca);
    assert_int_equal(c.alt_names.len, 0);
    assert_true(lk__str_eq(c.issuer, c.subject));
}

static void every_error_has_words(void **state) {
    (void)state;
    lk_world w;
    lk_world_init(&w);
    w.env = lk__env_fill(&w.env);
    llmkit_tls *tls = make(&w, "ca_rsa.pem", NULL, NULL);
    lk__tls *t = lk__tls_open(tls, &w.env, "localhost", 443, NULL);
    llmkit_error error = { 0 };
    for (int code = 1; code < 768; code++) {
        t->eng->err = code;
        llmkit_err err = lk__tls_why(t, &error);
        bool cert_code = code == BR_ERR_WRONG_KEY_USAGE || (code > 32 && code < 256);
        assert_err(err, cert_code ? LLMKIT_E_CERT : LLMKIT_E_TLS);
        assert_int_equal(error.tls_code, code);
        assert_non_null(strstr(error.message, "localhost"));
        assert_true(strlen(error.message) > 24);
        assert_true(strlen(error.message) < sizeof error.message - 1); /* not cut off */
        assert_err(lk__tls_why(t, NULL), err);
    }
    lk__tls_free(t);
    llmkit_tls_release(tls);
    assert_no_leak(&w);
}

/* ---- Threads ---------------------------------------------------------------------------------*/

#if LLMKIT_WITH_THREADS
typedef struct racer {
    pthread_t   thread;
    llmkit_tls *tls;
    unsigned    done;
} racer;

static void *race(void *user) {
    racer *r = user;
    llmkit_env env = lk__env_fill(NULL);
    static const char *const hosts[] = { "localhost", "127.0.0.1", "::1" };
    for (int i = 0; i < 12; i++) {
        pair p = { 0 };
        p.client = lk__tls_open(r->tls, &env, hosts[i % 3], 443, NULL);
        p.server = lk__tls_open(r->tls, &env, NULL, 0, NULL);
        pump(&p);
        r->done += lk__tls_ready(p.client) && lk__tls_ready(p.server);
        llmkit_tls_read(r->tls);
        pair_close(&p);
    }
    llmkit_tls_release(r->tls);
    return NULL;
}

static void threads_share_one_object(void **state) {
    (void)state;
    setenv("SSL_CERT_FILE", cert("bundle.pem"), 1); /* read by whichever comes first */
    llmkit_tls_desc d = { .cert_file = cert("rsa.pem"), .key_file = cert("rsa.key") };
    llmkit_tls *tls = llmkit_tls_create(&d, NULL);
    unsetenv("SSL_CERT_FILE");
    racer racers[3] = { { .tls = tls }, { .tls = tls }, { .tls = tls } };
    for (size_t i = 0; i < LK__COUNT(racers); i++) {
        lk__tls_retain(tls);
        assert_int_equal(pthread_create(&racers[i].thread, NULL, race, &racers[i]), 0);
    }
    for (size_t i = 0; i < LK__COUNT(racers); i++) {
        pthread_join(racers[i].thread, NULL);
        assert_int_equal(racers[i].done, 12);
    }
    llmkit_tls_stats stats = llmkit_tls_read(tls);
    assert_int_equal(stats.handshakes, 2 * 36);
    assert_true(stats.resumed >= 2 * (36 - 3 * 3));
    assert_int_equal(stats.anchors, 2);
    llmkit_tls_release(tls);
}
#endif

/* ---- Against openssl -------------------------------------------------------------------------*/

typedef struct process {
    pid_t pid;
    int   in, out; /* its standard input and output */
    int   fd;      /* our connection */
} process;

static void process_start(process *p, char **argv) {
    int in[2], out[2];
    assert_int_equal(pipe(in), 0);
    assert_int_equal(pipe(out), 0);
    p->fd = -1;
    p->pid = fork();
    assert_true(p->pid >= 0);
    if (p->pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 2);
        for (int fd = 3; fd < 64; fd++) close(fd);
        unsetenv("SSL_CERT_FILE");
        execvp(argv[0], argv);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    p->in = in[1];
    p->out = out[0];
}

static void process_end(process *p) {
    if (p->fd >= 0) close(p->fd);
    close(p->in);
    close(p->out);
    kill(p->pid, SIGKILL);
    waitpid(p->pid, NULL, 0);
}

static int connect_to(unsigned port) {
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct timeval limit = { .tv_sec = 10 };
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

/* s_server picks a port and prints "ACCEPT 127.0.0.1:PORT". */
static void serve(process *p, const char *name, const char *const *extra) {
    char pem[600], key[600], line[256] = "";
    snprintf(pem, sizeof pem, "%s/%s.pem", certs, name);
    snprintf(key, sizeof key, "%s/%s.key", certs, name);
    const char *argv[24] = { "openssl", "s_server", "-accept", "127.0.0.1:0", "-rev",
                             "-cert", pem, "-key", key };
    int n = 9;
    while (*extra) argv[n++] = *extra++;
    process_start(p, (char **)(uintptr_t)argv);
    size_t len = 0;
    while (len < sizeof line - 1 && read(p->out, line + len, 1) == 1) {
        if (line[len++] != '\n') continue;
        line[len] = '\0';
        char *at = strstr(line, "ACCEPT 127.0.0.1:");
        if (at) {
            p->fd = connect_to((unsigned)atoi(at + 17));
            return;
        }
        len = 0;
    }
    fail_msg("openssl s_server did not start");
}

static bool send_all(lk__tls *t, int fd) {
    size_t len;
    uint8_t *at;
    while ((at = lk__tls_buf(t, LK__TLS_SEND_WIRE, &len)) != NULL) {
        ssize_t n = send(fd, at, len, MSG_NOSIGNAL);
        if (n <= 0) return false;
        lk__tls_ack(t, LK__TLS_SEND_WIRE, (size_t)n);
    }
    return true;
}

/* Moves bytes until one of these bits is wanted, the peer is gone, or the engine closes. */
static unsigned run_until(lk__tls *t, int fd, unsigned bits) {
    size_t len;
    for (;;) {
        bool sent = send_all(t, fd);
        unsigned wants = lk__tls_wants(t);
        if ((wants & (bits | LK__TLS_CLOSED)) || !sent || !(wants & LK__TLS_RECV_WIRE))
            return wants;
        uint8_t *at = lk__tls_buf(t, LK__TLS_RECV_WIRE, &len);
        ssize_t n = recv(fd, at, len, 0);
        if (n <= 0) return lk__tls_wants(t);
        lk__tls_ack(t, LK__TLS_RECV_WIRE, (size_t)n);
    }
}

/* A line goes there and comes back reversed. */
static void talk(lk__tls *t, int fd) {
    size_t len, got = 0;
    char text[16] = "";
    assert_true(run_until(t, fd, LK__TLS_SEND_APP) & LK__TLS_SEND_APP);
    uint8_t *at = lk__tls_buf(t, LK__TLS_SEND_APP, &len);
    memcpy(at, "hello\n", 6);
    lk__tls_ack(t, LK__TLS_SEND_APP, 6);
    lk__tls_flush(t);
    while (got < 6) {
        assert_true(run_until(t, fd, LK__TLS_RECV_APP) & LK__TLS_RECV_APP);
        at = lk__tls_buf(t, LK__TLS_RECV_APP, &len);
        assert_true(got + len < sizeof text);
        memcpy(text + got, at, len);
        got += len;
        lk__tls_ack(t, LK__TLS_RECV_APP, len);
    }
    assert_string_equal(text, "olleh\n");
}

static void speaks_with_s_server(const char *leaf, const char *suite, const char *curves) {
    lk_world w;
    lk_world_init(&w);
    w.env = lk__env_fill(&w.env);
    llmkit_tls *tls = make(&w, "bundle.pem", NULL, NULL);
    process p;
    const char *extra[] = { "-tls1_2", "-cipher", suite, curves ? "-curves" : NULL, curves, NULL };
    serve(&p, leaf, extra);
    for (int i = 0; i < 2; i++) {
        llmkit_error error = { 0 };
        lk__tls *t = lk__tls_open(tls, &w.env, "localhost", 443, &error);
        assert_non_null(t);
        run_until(t, p.fd, LK__TLS_SEND_APP);
        if (lk__tls_why(t, &error)) print_error("%s: %s\n", suite, error.message);
        talk(t, p.fd);
        if (curves && !lk__tls_resumed(t))
            assert_int_equal(br_ssl_engine_get_ecdhe_curve(t->eng),
                             strcmp(curves, "X25519") ? BR_EC_secp256r1 : BR_EC_curve25519);
        assert_int_equal(lk__tls_resumed(t), i == 1);
        lk__tls_finish(t);
        run_until(t, p.fd, 0);
        lk__tls_free(t);
        if (i == 0) {
            struct sockaddr_in a;
            socklen_t len = sizeof a;
            getpeername(p.fd, (struct sockaddr *)&a, &len);
            close(p.fd);
            p.fd = connect_to(ntohs(a.sin_port));
        }
    }
    process_end(&p);
    llmkit_tls_release(tls);
    assert_no_leak(&w);
}

static void openssl_servers_are_understood(void **state) {
    (void)state;
    speaks_with_s_server("rsa", "ECDHE-RSA-AES128-GCM-SHA256", "X25519");
    speaks_with_s_server("rsa", "ECDHE-RSA-AES256-GCM-SHA384", "P-256");
    /* Both allow both: openssl goes by the client's list, where BearSSL puts P-256 first. */
    speaks_with_s_server("rsa", "ECDHE-RSA-CHACHA20-POLY1305", "X25519:P-256");
    speaks_with_s_server("ec", "ECDHE-ECDSA-AES128-GCM-SHA256", NULL);
    speaks_with_s_server("ec", "ECDHE-ECDSA-CHACHA20-POLY1305", NULL);
    speaks_with_s_server("ec384", "ECDHE-ECDSA-AES256-GCM-SHA384", NULL);
}

static void a_server_that_keeps_no_sessions_is_not_asked_again(void **state) {
    (void)state;
    lk_world w;
    lk_world_init(&w);
    w.env = lk__env_fill(&w.env);
    llmkit_tls *tls = make(&w, "bundle.pem", NULL, NULL);
    static const char *const extra[] = { "-tls1_2", "-no_cache", "-no_ticket", NULL };
    process p;
    serve(&p, "ec", extra);
    lk__tls_peer peer;
    uint8_t key[LK__SESSION_KEY];
    br_ssl_session_parameters old = session_of(7);
    assert_ok(lk__tls_peer_set(&peer, "localhost", NULL));
    lk__session_key(key, &peer, 443);
    lk__session_keep(tls, key, &old);
    lk__tls *t = lk__tls_open(tls, &w.env, "localhost", 443, NULL);
    talk(t, p.fd);
    assert_false(lk__tls_resumed(t));
    assert_false(lk__tls_knows(tls, "localhost", 443));
    lk__tls_free(t);
    process_end(&p);
    llmkit_tls_release(tls);
    assert_no_leak(&w);
}

static void s_server_refuses(const char *leaf, const char *const *extra, const char *pem,
                             const char *key, int code, const char *words) {
    lk_world w;
    lk_world_init(&w);
    w.env = lk__env_fill(&w.env);
    llmkit_error error = { 0 };
    llmkit_tls *tls = make(&w, "bundle.pem", pem, key);
    process p;
    serve(&p, leaf, extra);
    lk__tls *t = lk__tls_open(tls, &w.env, "localhost", 443, &error);
    run_until(t, p.fd, LK__TLS_RECV_APP);
    assert_true(lk__tls_wants(t) & LK__TLS_CLOSED);
    assert_err(lk__tls_why(t, &error), LLMKIT_E_TLS);
    if (!strstr(error.message, words)) print_error("%s\n", error.message);
    assert_non_null(strstr(error.message, words));
    assert_int_equal(error.tls_code, code);
    assert_false(error.retryable);
    lk__tls_free(t);
    process_end(&p);
    llmkit_tls_release(tls);
    assert_no_leak(&w);
}

static void other_versions_are_refused_in_words(void **state) {
    (void)state;
    static const char *const tls13[] = { "-tls1_3", NULL };
    static const char *const tls11[] = { "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", NULL };
    s_server_refuses("rsa", tls13, NULL, NULL, 256 + 70, "this library has TLS 1.2");
    s_server_refuses("rsa", tls11, NULL, NULL, 256 + 40, "we have TLS 1.2");
}

static void suites_we_do_not_have_are_refused_in_words(void **state) {
    (void)state;
    static const char *const cbc[] = { "-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA", NULL };
    static const char *const plain_rsa[] = { "-tls1_2", "-cipher", "AES128-GCM-SHA256", NULL };
    s_server_refuses("rsa", cbc, NULL, NULL, 256 + 40, "nothing in common");
    s_server_refuses("rsa", plain_rsa, NULL, NULL, 256 + 40, "nothing in common");
    static const char *const tls12[] = { "-tls1_2", NULL };
    s_server_refuses("ed25519", tls12, NULL, NULL, 256 + 40, "nothing in common");
}

static void a_client_certificate_is_shown_when_asked_for(void **state) {
    (void)state;
    static const char *const names[] = { "client", "client_rsa" };
    char ca[600];
    snprintf(ca, sizeof ca, "%s/bundle.pem", certs);
    const char *extra[] = { "-tls1_2", "-Verify", "1", "-verify_return_error", "-CAfile", ca,
                            NULL };
    for (size_t i = 0; i < LK__COUNT(names); i++) {
        lk_world w;
        lk_world_init(&w);
        w.env = lk__env_fill(&w.env);
        llmkit_error error = { 0 };
        char pem[64], key[64];
        snprintf(pem, sizeof pem, "%s.pem", names[i]);
        snprintf(key, sizeof key, "%s.key", names[i]);
        llmkit_tls *tls = make(&w, "bundle.pem", pem, key);
        process p;
        serve(&p, "rsa", extra);
        lk__tls *t = lk__tls_open(tls, &w.env, "localhost", 443, &error);
        talk(t, p.fd);
        lk__tls_free(t);
        process_end(&p);
        llmkit_tls_release(tls);
        assert_no_leak(&w);
    }
    s_server_refuses("rsa", extra, NULL, NULL, 256 + 40, "client certificate");
    s_server_refuses("rsa", extra, "self.pem", "self.key", 256 + 48, "unknown CA");
}

/* s_client against an engine of ours as the server. */
static void s_client_speaks(const char *leaf, const char *const *more, bool works, bool x25519) {
    lk_world w;
    lk_world_init(&w);
    w.env = lk__env_fill(&w.env);
    llmkit_error error = { 0 };
    char pem[64], key[64], ca[600], to[32];
    snprintf(pem, sizeof pem, "%s.pem", leaf);
    snprintf(key, sizeof key, "%s.key", leaf);
    snprintf(ca, sizeof ca, "%s/bundle.pem", certs);
    llmkit_tls *tls = make(&w, NULL, pem, key);
    struct sockaddr_in a = { .sin_family = AF_INET };
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t len = sizeof a;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(listener, 1), 0);
    getsockname(listener, (struct sockaddr *)&a, &len);
    snprintf(to, sizeof to, "127.0.0.1:%u", ntohs(a.sin_port));
    const char *argv[24] = { "openssl", "s_client", "-connect", to, "-quiet", "-servername",
                             "localhost", "-verify_hostname", "localhost",
                             "-verify_return_error", "-CAfile", ca };
    for (int n = 12; *more; n++) argv[n] = *more++;
    process p;
    process_start(&p, (char **)(uintptr_t)argv);
    p.fd = accept(listener, NULL, NULL);
    close(listener);
    lk__tls *t = lk__tls_open(tls, &w.env, NULL, 0, &error);
    assert_non_null(t);
    assert_int_equal(write(p.in, "from s_client\n", 14), 14);
    unsigned wants = run_until(t, p.fd, LK__TLS_RECV_APP);
    if (works) {
        assert_true(wants & LK__TLS_RECV_APP);
        size_t n;
        uint8_t *at = lk__tls_buf(t, LK__TLS_RECV_APP, &n);
        assert_str(lk__str((char *)at, n), "from s_client\n");
        lk__tls_ack(t, LK__TLS_RECV_APP, n);
        if (x25519) assert_int_equal(br_ssl_engine_get_ecdhe_curve(t->eng), BR_EC_curve25519);
        assert_string_equal(br_ssl_engine_get_server_name(t->eng), "localhost");
        lk__tls_finish(t);
        run_until(t, p.fd, 0);
        assert_ok(lk__tls_why(t, &error));
    } else {
        assert_err(lk__tls_why(t, &error), LLMKIT_E_TLS);
        assert_non_null(strstr(error.message, "a client"));
    }
    lk__tls_free(t);
    process_end(&p);
    llmkit_tls_release(tls);
    assert_no_leak(&w);
}

static void openssl_clients_are_served(void **state) {
    (void)state;
    static const char *const any[] = { NULL };
    static const char *const p256[] = { "-curves", "P-256", NULL };
    static const char *const both[] = { "-curves", "P-256:X25519", NULL };
    static const char *const chacha[] = { "-cipher", "ECDHE-RSA-CHACHA20-POLY1305", NULL };
    s_client_speaks("rsa", any, true, true);
    s_client_speaks("rsa", both, true, true); /* the server's preference */
    s_client_speaks("rsa", p256, true, false);
    s_client_speaks("rsa", chacha, true, true);
    s_client_speaks("ec", any, true, true);
    s_client_speaks("ec384", any, true, true);
    s_client_speaks("chain", any, true, true);
    static const char *const tls13[] = { "-tls1_3", NULL };
    static const char *const tls11[] = { "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", NULL };
    s_client_speaks("rsa", tls13, false, false);
    s_client_speaks("rsa", tls11, false, false);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_full_handshake_carries_bytes_both_ways),
    cmocka_unit_test(bytes_may_come_one_by_one),
    cmocka_unit_test(both_sides_prefer_x25519),
    cmocka_unit_test(a_second_connection_resumes_the_session),
    cmocka_unit_test(a_session_the_server_has_lost_leads_to_a_full_handshake),
    cmocka_unit_test(a_session_is_forgotten_after_a_fatal_error),
    cmocka_unit_test(the_session_that_was_idle_longest_makes_room),
    cmocka_unit_test(large_data_passes_both_ways),
    cmocka_unit_test(close_notify_ends_in_order),
    cmocka_unit_test(a_stream_that_just_stops_is_not_closed),
    cmocka_unit_test(a_certificate_for_another_host_is_refused),
    cmocka_unit_test(an_expired_certificate_is_refused),
    cmocka_unit_test(a_certificate_of_the_future_is_refused),
    cmocka_unit_test(a_foreign_ca_is_refused),
    cmocka_unit_test(a_leaf_is_no_ca),
    cmocka_unit_test(a_self_signed_certificate_is_refused_unless_named),
    cmocka_unit_test(wildcards_stand_for_one_label),
    cmocka_unit_test(addresses_match_only_address_entries),
    cmocka_unit_test(an_address_as_a_dns_name_does_not_match),
    cmocka_unit_test(an_address_still_needs_a_trusted_chain),
    cmocka_unit_test(hosts_are_brought_to_one_form),
    cmocka_unit_test(garbage_on_the_wire_is_refused),
    cmocka_unit_test(a_flipped_bit_ends_the_handshake),
    cmocka_unit_test(no_server_without_a_certificate),
    cmocka_unit_test(refused_allocations_are_survived),
    cmocka_unit_test(an_idle_connection_takes_less_than_24_kb),
    cmocka_unit_test(mistakes_in_a_desc_are_named),
    cmocka_unit_test(a_chain_has_a_most),
    cmocka_unit_test(no_message_shows_a_key),
    cmocka_unit_test(texts_do_as_well_as_files),
    cmocka_unit_test(certificates_that_bearssl_cannot_use_are_left_out),
    cmocka_unit_test(anchors_are_those_that_bearssl_reads),
    cmocka_unit_test(the_system_bundle_is_read_at_the_first_handshake),
    cmocka_unit_test(pem_is_read_in_all_its_shapes),
    cmocka_unit_test(der_elements_end_inside_their_parent),
    cmocka_unit_test(certificates_cut_anywhere_are_survived),
    cmocka_unit_test(every_error_has_words),
#if LLMKIT_WITH_THREADS
    cmocka_unit_test(threads_share_one_object),
#endif
    cmocka_unit_test(openssl_servers_are_understood),
    cmocka_unit_test(a_server_that_keeps_no_sessions_is_not_asked_again),
    cmocka_unit_test(other_versions_are_refused_in_words),
    cmocka_unit_test(suites_we_do_not_have_are_refused_in_words),
    cmocka_unit_test(a_client_certificate_is_shown_when_asked_for),
    cmocka_unit_test(openssl_clients_are_served),
};

int main(int argc, char **argv) {
    unsetenv("SSL_CERT_FILE");
    find_certs();
    return lk_test_main(__FILE__, tests, LK__COUNT(tests), argc, argv);
}

#else

static void without_tls_creating_says_so(void **state) {
    (void)state;
    llmkit_error error = { 0 };
    assert_null(llmkit_tls_create(NULL, &error));
    assert_err(error.code, LLMKIT_E_DISABLED);
    assert_non_null(strstr(error.message, "LLMKIT_WITH_TLS"));
    llmkit_tls_release(NULL);
    assert_int_equal(llmkit_tls_read(NULL).handshakes, 0);
    assert_null(lk__tls_retain(NULL));
    assert_false(lk__tls_has_identity(NULL));
}

static const struct CMUnitTest tests[] = { cmocka_unit_test(without_tls_creating_says_so) };

LK_TEST_MAIN(tests)

#endif
