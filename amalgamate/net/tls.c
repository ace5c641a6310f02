/* net/tls.c -- one TLS connection: profile, verification, handshake, errors in words */

#include "core/rand.h"
#include "net/tls.h"

#if LLMKIT_WITH_TLS

enum {
    LK__VERIFY_MAX_CHAIN = 65536, /* bytes; chains of the web have 3 to 6 KB */
    LK__VERIFY_MAX_CERTS = 16,
    LK__VERIFY_MAX_ANCHORS = 16,
    LK__VERIFY_MIN_RSA = 256 /* bytes: 2048 bits, as CAs have had to require since 2014 */
};

_Static_assert(LLMKIT_TLS_BUFFER >= 512 + 325, "LLMKIT_TLS_BUFFER: BearSSL's smallest records");

/* ---- Profile ---------------------------------------------------------------------------------*/

/* Suites with forward secrecy and authenticated encryption only (RFC 9325 4.2).  A short list is
 * also a quick one: BearSSL takes 200 us to write a ClientHello with its full list, 40 with this.
 * AES-GCM runs at 3 GB/s where the processor helps; where not, ChaCha20 is the faster one. */
static const uint16_t lk__tls_suites_aes[] = {
    BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    BR_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    BR_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
};
static const uint16_t lk__tls_suites_chacha[] = {
    BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    BR_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    BR_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
};

LK__PRIV void lk__tls_profile(br_ssl_engine_context *eng) {
    bool aes = br_aes_x86ni_ctr_get_vtable() || br_aes_pwr8_ctr_get_vtable();
    br_ssl_engine_set_versions(eng, BR_TLS12, BR_TLS12);
    br_ssl_engine_set_suites(eng, aes ? lk__tls_suites_aes : lk__tls_suites_chacha,
                             LK__COUNT(lk__tls_suites_aes));
    br_ssl_engine_add_flags(eng, BR_OPT_NO_RENEGOTIATION);
    br_ssl_engine_set_hash(eng, br_sha256_ID, &br_sha256_vtable);
    br_ssl_engine_set_hash(eng, br_sha384_ID, &br_sha384_vtable);
    br_ssl_engine_set_hash(eng, br_sha512_ID, &br_sha512_vtable);
    br_ssl_engine_set_prf_sha256(eng, &br_tls12_sha256_prf);
    br_ssl_engine_set_prf_sha384(eng, &br_tls12_sha384_prf);
    br_ssl_engine_set_default_aes_gcm(eng);
    br_ssl_engine_set_default_chapol(eng);
    br_ssl_engine_set_default_rsavrfy(eng);
    /* A BearSSL client lists its groups by number, X25519 (29) after P-256 (23), and nothing in its
     * interface changes that: a server that goes by the client's order takes the slower P-256. */
    br_ssl_engine_set_default_ecdsa(eng);
}

/* ---- Verification of a server's chain --------------------------------------------------------*/

/* A class of BearSSL's around its own br_x509_minimal, for two reasons.  That one matches no IP
 * addresses.  And it hashes the names of all trust anchors anew several times for each certificate,
 * which takes 2.7 ms for a chain of two with a system bundle of 144: so the chain is collected
 * first, and it sees only those anchors whose names occur in it. */
typedef struct lk__verifier {
    const br_x509_class *vtable; /* first, as BearSSL wants it */
    br_x509_minimal_context minimal;
    const llmkit_tls   *shared;
    const lk__tls_peer *peer;
    lk__buf             chain; /* certificates one after the other */
    size_t              ends[LK__VERIFY_MAX_CERTS];
    size_t              num_certs; /* also those beyond the maximum */
    br_x509_trust_anchor anchors[LK__VERIFY_MAX_ANCHORS];
    size_t              num_anchors;
} lk__verifier;

LK__PRIV lk__verifier *lk__verifier_of(const br_x509_class **ctx) {
    return LK__CONTAINER(ctx, lk__verifier, vtable);
}

/* The name comes with the peer. */
LK__PRIV void lk__verifier_start_chain(const br_x509_class **ctx, const char *server_name) {
    lk__verifier *v = lk__verifier_of(ctx);
    (void)server_name;
    lk__buf_clear(&v->chain);
    v->num_certs = 0;
}

LK__PRIV void lk__verifier_start_cert(const br_x509_class **ctx, uint32_t length) {
    (void)ctx;
    (void)length;
}

LK__PRIV void lk__verifier_append(const br_x509_class **ctx, const unsigned char *buf,
                                  size_t len) {
    lk__buf_add(&lk__verifier_of(ctx)->chain, buf, len);
}

LK__PRIV void lk__verifier_end_cert(const br_x509_class **ctx) {
    lk__verifier *v = lk__verifier_of(ctx);
    if (v->num_certs < LK__VERIFY_MAX_CERTS) v->ends[v->num_certs] = v->chain.len;
    v->num_certs++;
}

LK__PRIV llmkit_str lk__verifier_cert(const lk__verifier *v, size_t i) {
    size_t start = i > 0 ? v->ends[i - 1] : 0;
    return lk__str(v->chain.ptr + start, v->ends[i] - start);
}

/* Anchors that issued a certificate of the chain, or are its leaf. */
LK__PRIV void lk__verifier_choose(lk__verifier *v) {
    llmkit_str names[LK__VERIFY_MAX_CERTS + 1];
    size_t num = 0;
    lk__cert cert;
    for (size_t i = 0; i < v->num_certs; i++) {
        if (!lk__cert_parse(lk__verifier_cert(v, i), &cert)) continue;
        names[num++] = cert.issuer;
        if (i == 0) names[num++] = cert.subject;
    }
    const lk__anchors *all = &v->shared->anchors;
    v->num_anchors = 0;
    for (size_t a = 0; a < all->num && v->num_anchors < LK__VERIFY_MAX_ANCHORS; a++) {
        llmkit_str dn = lk__str((char *)all->list[a].dn.data, all->list[a].dn.len);
        size_t i = 0;
        while (i < num && !lk__str_eq(names[i], dn)) i++;
        if (i < num) v->anchors[v->num_anchors++] = all->list[a];
    }
}

LK__PRIV void lk__verifier_prepare(lk__verifier *v) {
    br_x509_minimal_context *m = &v->minimal;
    int64_t now = (int64_t)time(NULL);
    br_x509_minimal_init(m, &br_sha256_vtable, v->anchors, v->num_anchors);
    br_x509_minimal_set_rsa(m, br_rsa_pkcs1_vrfy_get_default());
    br_x509_minimal_set_ecdsa(m, br_ec_get_default(), br_ecdsa_vrfy_asn1_get_default());
    br_x509_minimal_set_hash(m, br_sha256_ID, &br_sha256_vtable);
    br_x509_minimal_set_hash(m, br_sha384_ID, &br_sha384_vtable);
    br_x509_minimal_set_hash(m, br_sha512_ID, &br_sha512_vtable);
    br_x509_minimal_set_minrsa(m, LK__VERIFY_MIN_RSA);
    /* BearSSL counts days from the year 0; 1970 began 719528 days later. */
    br_x509_minimal_set_time(m, (uint32_t)(now / 86400 + 719528), (uint32_t)(now % 86400));
}

/* RFC 9110 4.3.5: an address is matched by iPAddress entries of the leaf only, never by a dNSName
 * or a common name that looks like it. */
LK__PRIV bool lk__verifier_has_ip(const lk__verifier *v) {
    lk__cert leaf;
    return lk__cert_parse(lk__verifier_cert(v, 0), &leaf) &&
           lk__cert_has_ip(&leaf, v->peer->ip, v->peer->ip_len);
}

LK__PRIV unsigned lk__verifier_end_chain(const br_x509_class **ctx) {
    lk__verifier *v = lk__verifier_of(ctx);
    if (v->chain.failed || v->num_certs > LK__VERIFY_MAX_CERTS) return BR_ERR_X509_LIMIT_EXCEEDED;
    lk__verifier_choose(v);
    lk__verifier_prepare(v);
    const br_x509_class **m = &v->minimal.vtable;
    bool is_name = v->peer->ip_len == 0;
    (*m)->start_chain(m, is_name ? v->peer->name : NULL);
    for (size_t i = 0; i < v->num_certs; i++) {
        llmkit_str der = lk__verifier_cert(v, i);
        (*m)->start_cert(m, (uint32_t)der.len);
        if (der.len > 0) (*m)->append(m, (const unsigned char *)der.ptr, der.len);
        (*m)->end_cert(m);
    }
    unsigned err = (*m)->end_chain(m);
    if (!err && !is_name && !lk__verifier_has_ip(v)) err = BR_ERR_X509_BAD_SERVER_NAME;
    return err;
}

LK__PRIV const br_x509_pkey *lk__verifier_get_pkey(const br_x509_class *const *ctx,
                                                   unsigned *usages) {
    const lk__verifier *v = lk__verifier_of((const br_x509_class **)(uintptr_t)ctx);
    return v->minimal.vtable->get_pkey(&v->minimal.vtable, usages);
}

static const br_x509_class lk__verifier_class = {
    .context_size = sizeof(lk__verifier),
    .start_chain = lk__verifier_start_chain,
    .start_cert = lk__verifier_start_cert,
    .append = lk__verifier_append,
    .end_cert = lk__verifier_end_cert,
    .end_chain = lk__verifier_end_chain,
    .get_pkey = lk__verifier_get_pkey,
};

/* ---- One connection --------------------------------------------------------------------------*/

struct lk__tls {
    llmkit_tls            *shared;
    const llmkit_env      *env;
    br_ssl_engine_context *eng;      /* of the client's or the server's context below */
    lk__verifier          *verifier; /* NULL for servers, and once ready */
    bool                   is_server, ready, resumed;
    uint8_t                offered_len; /* of the session we asked to resume; 0: none */
    uint8_t                offered[32];
    uint8_t                session_key[LK__SESSION_KEY];
    lk__tls_peer           peer;
    union {
        br_ssl_client_context client;
        br_ssl_server_context server;
    } ctx;
    uint8_t buffer[LLMKIT_TLS_BUFFER];
};

/* BearSSL's cache of a server's sessions knows no threads.  A hit may still be turned down, if the
 * client has dropped the suite; then a new session follows and is saved. */
LK__PRIV void lk__served_save(const br_ssl_session_cache_class **ctx, br_ssl_server_context *server,
                              const br_ssl_session_parameters *params) {
    llmkit_tls *tls = LK__CONTAINER(ctx, llmkit_tls, served_class);
    LK__CONTAINER(server, lk__tls, ctx.server)->resumed = false;
    lk__lock(&tls->session_lock);
    tls->served_lru.vtable->save(&tls->served_lru.vtable, server, params);
    lk__unlock(&tls->session_lock);
}

LK__PRIV int lk__served_load(const br_ssl_session_cache_class **ctx, br_ssl_server_context *server,
                             br_ssl_session_parameters *params) {
    llmkit_tls *tls = LK__CONTAINER(ctx, llmkit_tls, served_class);
    lk__lock(&tls->session_lock);
    int found = tls->served_lru.vtable->load(&tls->served_lru.vtable, server, params);
    lk__unlock(&tls->session_lock);
    LK__CONTAINER(server, lk__tls, ctx.server)->resumed = found != 0;
    return found;
}

static const br_ssl_session_cache_class lk__served_class = {
    .context_size = sizeof(br_ssl_session_cache_class *),
    .save = lk__served_save,
    .load = lk__served_load,
};

/* Connections start as copies of these contexts.  Building one anew asks the processor for its
 * features nine times, and each such CPUID traps under a hypervisor: 75 us in all.  The reset seeds
 * the random numbers from the system once; each copy adds fresh bytes of its own. */
LK__PRIV llmkit_err lk__tls_prepare(llmkit_tls *tls, llmkit_error *error) {
    unsigned char room[1024]; /* a reset wants some buffer */
    tls->served_class = &lk__served_class;
    br_ssl_client_zero(&tls->client);
    lk__tls_profile(&tls->client.eng);
    br_ssl_engine_set_buffer(&tls->client.eng, room, sizeof room, 0);
    bool good = br_ssl_client_reset(&tls->client, NULL, 0) != 0;
    if (good && lk__tls_has_identity(tls)) {
        br_ssl_server_zero(&tls->server);
        lk__tls_profile(&tls->server.eng);
        br_ssl_engine_add_flags(&tls->server.eng, BR_OPT_ENFORCE_SERVER_PREFERENCES);
        br_ssl_engine_set_buffer(&tls->server.eng, room, sizeof room, 0);
        good = br_ssl_server_reset(&tls->server) != 0;
    }
    lk__wipe(room, sizeof room);
    if (good) return LLMKIT_OK;
    return lk__fail(error, LLMKIT_E_TLS, "the system has no random numbers for TLS");
}

/* Fresh bytes for every connection: two that start from the same copied state, even on both sides
 * of a fork, never draw the same numbers. */
LK__PRIV llmkit_err lk__tls_seed(lk__tls *t, llmkit_error *error) {
    uint8_t seed[32];
    if (!lk__entropy(seed, sizeof seed))
        return lk__fail(error, LLMKIT_E_TLS, "the system has no random numbers for TLS");
    br_ssl_engine_inject_entropy(t->eng, seed, sizeof seed);
    lk__wipe(seed, sizeof seed);
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__tls_verify_with(lk__tls *t, llmkit_error *error) {
    lk__verifier *v = lk__alloc(t->env, sizeof *v);
    if (!v) return lk__fail(error, LLMKIT_E_NOMEM, "no memory for a TLS handshake");
    v->vtable = &lk__verifier_class;
    v->shared = t->shared;
    v->peer = &t->peer;
    lk__buf_init(&v->chain, t->env, LK__VERIFY_MAX_CHAIN);
    t->verifier = v;
    br_ssl_engine_set_x509(t->eng, &v->vtable);
    return LLMKIT_OK;
}

LK__PRIV void lk__tls_identify_client(lk__tls *t) {
    const lk__identity *id = &t->shared->identity;
    br_ssl_client_context *c = &t->ctx.client;
    if (br_skey_decoder_key_type(id->key) == BR_KEYTYPE_RSA)
        br_ssl_client_set_single_rsa(c, id->chain, id->chain_len, br_skey_decoder_get_rsa(id->key),
                                     br_rsa_pkcs1_sign_get_default());
    else
        br_ssl_client_set_single_ec(c, id->chain, id->chain_len, br_skey_decoder_get_ec(id->key),
                                    BR_KEYTYPE_SIGN, BR_KEYTYPE_EC, br_ec_get_default(),
                                    br_ecdsa_sign_asn1_get_default());
}

LK__PRIV llmkit_err lk__tls_start_client(lk__tls *t, const char *host, uint16_t port,
                                         llmkit_error *error) {
    br_ssl_client_context *c = &t->ctx.client;
    llmkit_err err = lk__tls_peer_set(&t->peer, host, error);
    if (!err) err = lk__tls_trust(t->shared, error);
    if (err) return err;
    memcpy(c, &t->shared->client, sizeof *c);
    t->eng = &c->eng;
    br_ssl_engine_set_buffer(t->eng, t->buffer, sizeof t->buffer, 0);
    err = lk__tls_verify_with(t, error);
    if (!err) err = lk__tls_seed(t, error);
    if (err) return err;
    if (lk__tls_has_identity(t->shared)) lk__tls_identify_client(t);
    lk__session_key(t->session_key, &t->peer, port);
    br_ssl_session_parameters session;
    if (lk__session_find(t->shared, t->session_key, &session)) {
        br_ssl_engine_set_session_parameters(t->eng, &session);
        t->offered_len = session.session_id_len;
        memcpy(t->offered, session.session_id, sizeof t->offered);
        lk__wipe(&session, sizeof session);
    }
    /* RFC 6066 3: an address is not sent as a server name. */
    br_ssl_client_reset(c, t->peer.ip_len > 0 ? NULL : t->peer.name, t->offered_len > 0);
    return lk__tls_why(t, error);
}

LK__PRIV void lk__tls_identify_server(lk__tls *t) {
    const lk__identity *id = &t->shared->identity;
    br_ssl_server_context *s = &t->ctx.server;
    if (br_skey_decoder_key_type(id->key) == BR_KEYTYPE_RSA)
        br_ssl_server_set_single_rsa(s, id->chain, id->chain_len, br_skey_decoder_get_rsa(id->key),
                                     BR_KEYTYPE_SIGN, br_rsa_private_get_default(),
                                     br_rsa_pkcs1_sign_get_default());
    else
        br_ssl_server_set_single_ec(s, id->chain, id->chain_len, br_skey_decoder_get_ec(id->key),
                                    BR_KEYTYPE_SIGN, BR_KEYTYPE_EC, br_ec_get_default(),
                                    br_ecdsa_sign_asn1_get_default());
}

LK__PRIV llmkit_err lk__tls_start_server(lk__tls *t, llmkit_error *error) {
    br_ssl_server_context *s = &t->ctx.server;
    t->is_server = true;
    if (!lk__tls_has_identity(t->shared))
        return lk__fail(error, LLMKIT_E_ARG, "a TLS server needs cert_file and key_file");
    llmkit_err err = lk__tls_serve_sessions(t->shared, error);
    if (err) return err;
    memcpy(s, &t->shared->server, sizeof *s);
    t->eng = &s->eng;
    br_ssl_engine_set_buffer(t->eng, t->buffer, sizeof t->buffer, 0);
    err = lk__tls_seed(t, error);
    if (err) return err;
    lk__tls_identify_server(t);
    br_ssl_server_set_cache(s, &t->shared->served_class);
    br_ssl_server_reset(s);
    return lk__tls_why(t, error);
}

LK__PRIV lk__tls *lk__tls_open(llmkit_tls *shared, const llmkit_env *env, const char *host,
                               uint16_t port, llmkit_error *error) {
    lk__tls *t = lk__alloc(env, sizeof *t);
    if (!t) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a TLS connection");
        return NULL;
    }
    t->env = env;
    t->shared = lk__tls_retain(shared);
    llmkit_err err = host ? lk__tls_start_client(t, host, port, error)
                          : lk__tls_start_server(t, error);
    if (!err) return t;
    lk__tls_free(t);
    return NULL;
}

LK__PRIV void lk__tls_drop_verifier(lk__tls *t) {
    lk__verifier *v = t->verifier;
    if (!v) return;
    br_ssl_engine_set_x509(t->eng, NULL);
    lk__buf_free(&v->chain);
    lk__free(t->env, v, sizeof *v);
    t->verifier = NULL;
}

/* RFC 5246 7.2.2: a session whose connection ended in an error is not resumed again. */
LK__PRIV void lk__tls_free(lk__tls *t) {
    if (!t) return;
    llmkit_tls *shared = t->shared;
    const llmkit_env *env = t->env;
    if (t->eng && !t->is_server && br_ssl_engine_last_error(t->eng) != BR_ERR_OK)
        lk__session_forget(shared, t->session_key);
    if (!t->ready) (void)lk__add_relaxed(&shared->failed, 1);
    lk__tls_drop_verifier(t);
    lk__wipe(t, sizeof *t);
    lk__free(env, t, sizeof *t);
    llmkit_tls_release(shared);
}

LK__PRIV void lk__tls_note_session(lk__tls *t) {
    br_ssl_session_parameters now;
    br_ssl_engine_get_session_parameters(t->eng, &now);
    t->resumed = t->offered_len > 0 && t->offered_len == now.session_id_len &&
                 memcmp(t->offered, now.session_id, t->offered_len) == 0;
    if (!t->resumed && now.session_id_len > 0)
        lk__session_keep(t->shared, t->session_key, &now);
    else if (!t->resumed && t->offered_len > 0)
        lk__session_forget(t->shared, t->session_key);
    lk__wipe(&now, sizeof now);
}

LK__PRIV void lk__tls_complete(lk__tls *t) {
    t->ready = true;
    if (!t->is_server) lk__tls_note_session(t);
    (void)lk__add_relaxed(&t->shared->handshakes, 1);
    if (t->resumed) (void)lk__add_relaxed(&t->shared->resumed, 1);
    lk__tls_drop_verifier(t);
}

/* Our bits stand in BearSSL's order, but for the lowest. */
_Static_assert(BR_SSL_SENDREC == LK__TLS_SEND_WIRE << 1, "BearSSL's state bits");
_Static_assert(BR_SSL_RECVREC == LK__TLS_RECV_WIRE << 1, "BearSSL's state bits");
_Static_assert(BR_SSL_SENDAPP == LK__TLS_SEND_APP << 1, "BearSSL's state bits");
_Static_assert(BR_SSL_RECVAPP == LK__TLS_RECV_APP << 1, "BearSSL's state bits");
_Static_assert(BR_SSL_CLOSED == 1, "BearSSL's state bits");

LK__PRIV unsigned lk__tls_wants(const lk__tls *t) {
    unsigned state = br_ssl_engine_current_state(t->eng);
    return state >> 1 | (state & BR_SSL_CLOSED ? (unsigned)LK__TLS_CLOSED : 0);
}

LK__PRIV uint8_t *lk__tls_buf(lk__tls *t, unsigned channel, size_t *len) {
    switch (channel) {
    case LK__TLS_SEND_WIRE: return br_ssl_engine_sendrec_buf(t->eng, len);
    case LK__TLS_RECV_WIRE: return br_ssl_engine_recvrec_buf(t->eng, len);
    case LK__TLS_SEND_APP: return br_ssl_engine_sendapp_buf(t->eng, len);
    case LK__TLS_RECV_APP: return br_ssl_engine_recvapp_buf(t->eng, len);
    default: *len = 0; return NULL;
    }
}

LK__PRIV void lk__tls_ack(lk__tls *t, unsigned channel, size_t len) {
    if (len == 0) return; /* BearSSL must not see that */
    switch (channel) {
    case LK__TLS_SEND_WIRE: br_ssl_engine_sendrec_ack(t->eng, len); break;
    case LK__TLS_RECV_WIRE: br_ssl_engine_recvrec_ack(t->eng, len); break;
    case LK__TLS_SEND_APP: br_ssl_engine_sendapp_ack(t->eng, len); break;
    case LK__TLS_RECV_APP: br_ssl_engine_recvapp_ack(t->eng, len); break;
    default: break;
    }
    /* Looked at after each step: with the first bytes of the next record the engine would take no
     * application's bytes for a while. */
    if (!t->ready && (lk__tls_wants(t) & (LK__TLS_SEND_APP | LK__TLS_RECV_APP)))
        lk__tls_complete(t);
}

LK__PRIV void lk__tls_flush(lk__tls *t) {
    br_ssl_engine_flush(t->eng, 0);
}

LK__PRIV void lk__tls_finish(lk__tls *t) {
    br_ssl_engine_close(t->eng);
}

LK__PRIV bool lk__tls_ready(lk__tls *t) {
    return t->ready;
}

LK__PRIV bool lk__tls_resumed(const lk__tls *t) {
    return t->resumed;
}

LK__PRIV bool lk__tls_knows(llmkit_tls *shared, const char *host, uint16_t port) {
    lk__tls_peer peer;
    uint8_t key[LK__SESSION_KEY];
    if (lk__tls_peer_set(&peer, host, NULL)) return false;
    lk__session_key(key, &peer, port);
    return lk__session_find(shared, key, NULL);
}

/* ---- Errors in words -------------------------------------------------------------------------*/

typedef struct lk__tls_row {
    int         code;
    bool        retryable;
    const char *text;
} lk__tls_row;

/* "the certificate of HOST ..." */
static const lk__tls_row lk__tls_cert_rows[] = {
    { BR_ERR_WRONG_KEY_USAGE, false, "must not be used for this cipher suite, says its key usage" },
    { BR_ERR_X509_EMPTY_CHAIN, false, "is missing: the server sent none" },
    { BR_ERR_X509_UNSUPPORTED, false,
      "has a kind of key or signature that BearSSL does not know, such as Ed25519 or RSA-PSS" },
    { BR_ERR_X509_LIMIT_EXCEEDED, false,
      "or its chain is too large: RSA keys have up to 4096 bits, chains up to 16 certificates" },
    { BR_ERR_X509_WRONG_KEY_TYPE, false, "has a key that does not fit the cipher suite" },
    { BR_ERR_X509_BAD_SIGNATURE, false, "or one in its chain has a bad signature" },
    { BR_ERR_X509_TIME_UNKNOWN, false, "cannot be checked: this machine does not know the time" },
    { BR_ERR_X509_EXPIRED, false, "expired or is not yet valid; check the clock of this machine" },
    { BR_ERR_X509_DN_MISMATCH, false,
      "is not followed by its issuer's: the server's chain is out of order" },
    { BR_ERR_X509_BAD_SERVER_NAME, false, "is for other names; check the host in the URL" },
    { BR_ERR_X509_CRITICAL_EXTENSION, false,
      "has a critical extension that BearSSL does not know" },
    { BR_ERR_X509_NOT_CA, false, "was issued by a certificate that is not a CA's" },
    { BR_ERR_X509_FORBIDDEN_KEY_USAGE, false, "or one in its chain is used against its key usage" },
    { BR_ERR_X509_WEAK_PUBLIC_KEY, false, "or one in its chain has an RSA key under 2048 bits" },
    { BR_ERR_X509_NOT_TRUSTED, false,
      "was issued by a CA that is not in the trust bundle; name one with ca_file" },
};

/* "TLS with HOST failed: ..." */
static const lk__tls_row lk__tls_error_rows[] = {
    { BR_ERR_BAD_PARAM, false, "BearSSL refused a parameter" },
    { BR_ERR_UNSUPPORTED_VERSION, false, "the peer's version is not TLS 1.2, the one we have" },
    { BR_ERR_BAD_VERSION, false, "the answer is not TLS 1.2; is this port one for https:?" },
    { BR_ERR_BAD_LENGTH, false, "a record has an impossible length; is this port one for https:?" },
    { BR_ERR_TOO_LARGE, false, "a record is too large for LLMKIT_TLS_BUFFER" },
    { BR_ERR_BAD_MAC, true, "a record was damaged on the way" },
    { BR_ERR_NO_RANDOM, true, "the system has no random numbers" },
    { BR_ERR_UNKNOWN_TYPE, false, "the answer is not TLS; is this port one for https:?" },
    { BR_ERR_UNEXPECTED, false, "the peer sent a message out of turn" },
    { BR_ERR_BAD_CIPHER_SUITE, false, "the server chose a cipher suite that was not offered" },
    { BR_ERR_BAD_SECRENEG, false, "the peer's renegotiation info is wrong" },
    { BR_ERR_EXTRA_EXTENSION, false, "the server answered an extension that was not sent" },
    { BR_ERR_BAD_FINISHED, false, "the handshake was tampered with" },
    { BR_ERR_RESUME_MISMATCH, true, "the server resumed a session with other parameters" },
    { BR_ERR_INVALID_ALGORITHM, false,
      "the server uses a signature or curve that was not offered, such as RSA-PSS" },
    { BR_ERR_BAD_SIGNATURE, false, "the server's key exchange has a bad signature" },
    { BR_ERR_NO_CLIENT_AUTH, false, "the client sent no certificate" },
    { BR_ERR_IO, true, "the transport failed" },
};

/* "TLS with HOST failed: alert N: ..." (RFC 5246 7.2.2, RFC 6066, RFC 8446 6) */
static const lk__tls_row lk__tls_alert_rows[] = {
    { BR_ALERT_UNEXPECTED_MESSAGE, false, "unexpected message" },
    { BR_ALERT_BAD_RECORD_MAC, true, "a record was damaged on the way" },
    { BR_ALERT_RECORD_OVERFLOW, false, "a record is too large" },
    { BR_ALERT_HANDSHAKE_FAILURE, false,
      "nothing in common (we have TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305), or a client"
      " certificate is wanted (cert_file)" },
    { BR_ALERT_BAD_CERTIFICATE, false, "the certificate was found bad" },
    { BR_ALERT_UNSUPPORTED_CERTIFICATE, false, "the kind of certificate is not supported" },
    { BR_ALERT_CERTIFICATE_REVOKED, false, "the certificate is revoked" },
    { BR_ALERT_CERTIFICATE_EXPIRED, false, "the certificate has expired" },
    { BR_ALERT_CERTIFICATE_UNKNOWN, false, "the certificate was not accepted" },
    { BR_ALERT_ILLEGAL_PARAMETER, false, "illegal parameter" },
    { BR_ALERT_UNKNOWN_CA, false, "the certificate was issued by an unknown CA" },
    { BR_ALERT_ACCESS_DENIED, false, "access denied" },
    { BR_ALERT_DECODE_ERROR, false, "a message could not be decoded" },
    { BR_ALERT_DECRYPT_ERROR, false, "a signature or a Finished message did not verify" },
    { BR_ALERT_PROTOCOL_VERSION, false,
      "no version in common: the peer wants another, such as TLS 1.3; this library has TLS 1.2" },
    { BR_ALERT_INSUFFICIENT_SECURITY, false, "the peer wants stronger cipher suites" },
    { BR_ALERT_INTERNAL_ERROR, true, "internal error" },
    { BR_ALERT_USER_CANCELED, true, "cancelled" },
    { 112, false, "the server does not know this host name" },
    { 116, false, "a client certificate is required (cert_file)" },
    { BR_ALERT_NO_APPLICATION_PROTOCOL, false, "no application protocol in common" },
};

LK__PRIV const lk__tls_row *lk__tls_row_find(const lk__tls_row *rows, size_t num, int code) {
    for (size_t i = 0; i < num; i++)
        if (rows[i].code == code) return &rows[i];
    return NULL;
}

LK__PRIV llmkit_err lk__tls_why_alert(const char *who, int code, llmkit_error *error) {
    bool sent = code >= BR_ERR_SEND_FATAL_ALERT;
    int alert = code - (sent ? BR_ERR_SEND_FATAL_ALERT : BR_ERR_RECV_FATAL_ALERT);
    const lk__tls_row *row =
        lk__tls_row_find(lk__tls_alert_rows, LK__COUNT(lk__tls_alert_rows), alert);
    lk__fail(error, LLMKIT_E_TLS, "TLS with %s failed: alert %d %s: %s", who, alert,
             sent ? "sent" : "received", row ? row->text : "no known meaning");
    if (error) error->retryable = row && row->retryable;
    return LLMKIT_E_TLS;
}

LK__PRIV llmkit_err lk__tls_why_code(const char *who, int code, llmkit_error *error) {
    const lk__tls_row *row =
        lk__tls_row_find(lk__tls_cert_rows, LK__COUNT(lk__tls_cert_rows), code);
    if (row) return lk__fail(error, LLMKIT_E_CERT, "the certificate of %s %s", who, row->text);
    if (code >= BR_ERR_X509_INVALID_VALUE && code < BR_ERR_RECV_FATAL_ALERT)
        return lk__fail(error, LLMKIT_E_CERT,
                        "the certificate of %s is malformed: BearSSL error %d", who, code);
    row = lk__tls_row_find(lk__tls_error_rows, LK__COUNT(lk__tls_error_rows), code);
    if (row)
        lk__fail(error, LLMKIT_E_TLS, "TLS with %s failed: %s", who, row->text);
    else
        lk__fail(error, LLMKIT_E_TLS,
                 "TLS with %s failed: the peer broke the protocol: BearSSL error %d", who, code);
    if (error) error->retryable = row && row->retryable;
    return LLMKIT_E_TLS;
}

LK__PRIV llmkit_err lk__tls_why(const lk__tls *t, llmkit_error *error) {
    int code = br_ssl_engine_last_error(t->eng);
    const char *who = t->is_server ? "a client" : t->peer.name;
    if (code == BR_ERR_OK) return LLMKIT_OK;
    llmkit_err err;
    if (t->verifier && t->verifier->chain.failed == LLMKIT_E_NOMEM)
        err = lk__fail(error, LLMKIT_E_NOMEM, "no memory for the certificates of %s", who);
    else if (code >= BR_ERR_RECV_FATAL_ALERT)
        err = lk__tls_why_alert(who, code, error);
    else
        err = lk__tls_why_code(who, code, error);
    if (error) error->tls_code = code;
    return err;
}

#endif
