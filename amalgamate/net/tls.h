/* net/tls.h -- one TLS connection as a state machine without sockets */
#pragma once

#include "core/atomic.h"
#include "core/error.h"

#if LLMKIT_WITH_TLS

/* BearSSL's engine, prepared: bytes of the wire go in and out on one side, the application's on the
 * other.  Half-duplex buffer: nothing can be sent while a record has been received in part. */
typedef struct lk__tls lk__tls;

enum { /* what lk__tls_wants answers, and the four channels */
    LK__TLS_SEND_WIRE = 1, /* bytes for the peer are waiting */
    LK__TLS_RECV_WIRE = 2, /* it can take bytes from the peer */
    LK__TLS_SEND_APP  = 4, /* it can take bytes from the application: the handshake is done */
    LK__TLS_RECV_APP  = 8, /* bytes for the application are waiting */
    LK__TLS_CLOSED    = 16 /* closed, cleanly or not: see lk__tls_why */
};

/* host: whom to verify (a name or an IP address, without brackets); NULL: we are the server.  port
 * tells sessions of one host apart.  Takes its own reference to shared; env pays for the memory and
 * is the loop's, which outlives the connection. */
LK__PRIV lk__tls *lk__tls_open(llmkit_tls *shared, const llmkit_env *env, const char *host,
                               uint16_t port, llmkit_error *error);
LK__PRIV void lk__tls_free(lk__tls *t); /* NULL is fine; keys are wiped */
LK__PRIV unsigned lk__tls_wants(const lk__tls *t);
/* The buffer of one channel, and how much of it was used; exactly as BearSSL's _buf and _ack, but
 * that an ack of 0 bytes does nothing. */
LK__PRIV uint8_t *lk__tls_buf(lk__tls *t, unsigned channel, size_t *len);
LK__PRIV void lk__tls_ack(lk__tls *t, unsigned channel, size_t len);
LK__PRIV void lk__tls_flush(lk__tls *t);  /* what was written becomes a record */
LK__PRIV void lk__tls_finish(lk__tls *t); /* sends close_notify */
/* Once true, stays true.  The lk__tls_ack that makes it true notes the session for resumption and
 * gives handshake memory back. */
LK__PRIV bool lk__tls_ready(lk__tls *t);
LK__PRIV bool lk__tls_resumed(const lk__tls *t);
/* After CLOSED: OK if the peer closed with close_notify, else E_TLS or E_CERT in words (E_NOMEM
 * where a certificate found no memory). */
LK__PRIV llmkit_err lk__tls_why(const lk__tls *t, llmkit_error *error);
/* A session for this host is known, so that the next handshake may be short. */
LK__PRIV bool lk__tls_knows(llmkit_tls *shared, const char *host, uint16_t port);

/* What net/tls_trust.c keeps and net/tls.c uses. */

/* The host of a connection in the form that is verified: a lower-case name without a trailing dot,
 * or an address. */
typedef struct lk__tls_peer {
    char    name[256]; /* also of an address, for messages; "" for a server's connection */
    uint8_t ip[16];
    uint8_t ip_len; /* 0 for names, 4 or 16 */
} lk__tls_peer;

typedef struct lk__anchors {
    br_x509_trust_anchor *list; /* each one's name and key lie in one block, at dn.data */
    size_t                num, cap;
} lk__anchors;

/* A certificate chain and its key, in blocks of their own. */
typedef struct lk__identity {
    br_x509_certificate *chain; /* leaf first; NULL: there is none */
    size_t               chain_len;
    br_skey_decoder_context *key; /* holds the decoded key */
} lk__identity;

enum { LK__SESSION_WAYS = 8, LK__SESSION_KEY = 32 };

/* One host's session.  The key is SHA-256 over the host and the port. */
typedef struct lk__session {
    uint8_t  key[LK__SESSION_KEY];
    uint64_t used;    /* 0: empty; the lowest of a set is replaced first */
    int64_t  born_ns; /* when the full handshake was */
    br_ssl_session_parameters params;
} lk__session;

struct llmkit_tls {
    lk__atomic_u32 refs;
    llmkit_env     env;
    char          *bundle; /* SSL_CERT_FILE as it was at creation, NULL: not set */
    lk__identity   identity;

    lk__mutex      trust_lock;
    lk__atomic_u32 trust_ready; /* anchors is complete and does not change any more */
    lk__anchors    anchors;

    lk__mutex      session_lock;
    uint32_t       max_sessions; /* 0: the defaults */
    lk__session   *sessions; /* sets of LK__SESSION_WAYS; NULL before the first one is kept */
    size_t         num_sessions;
    uint64_t       session_clock;
    uint8_t       *served; /* sessions of our clients, for BearSSL's cache; NULL before the first */
    size_t         served_bytes;
    br_ssl_session_cache_lru served_lru;
    const br_ssl_session_cache_class *served_class; /* the same behind session_lock */

    lk__atomic_u64 handshakes, resumed, failed;

    br_ssl_client_context client; /* prepared, to be copied for each connection */
    br_ssl_server_context server; /* likewise, if there is an identity */
};

/* Sets up the contexts that connections start from. */
LK__PRIV llmkit_err lk__tls_prepare(llmkit_tls *tls, llmkit_error *error);
/* Reads the trust anchors if that has not been done yet. */
LK__PRIV llmkit_err lk__tls_trust(llmkit_tls *tls, llmkit_error *error);
/* Makes room for sessions of our clients if that has not been done yet. */
LK__PRIV llmkit_err lk__tls_serve_sessions(llmkit_tls *tls, llmkit_error *error);
LK__PRIV llmkit_err lk__tls_peer_set(lk__tls_peer *peer, const char *host, llmkit_error *error);
LK__PRIV void lk__session_key(uint8_t key[LK__SESSION_KEY], const lk__tls_peer *peer,
                              uint16_t port);
/* out NULL: only asks. */
LK__PRIV bool lk__session_find(llmkit_tls *tls, const uint8_t key[LK__SESSION_KEY],
                               br_ssl_session_parameters *out);
LK__PRIV void lk__session_keep(llmkit_tls *tls, const uint8_t key[LK__SESSION_KEY],
                               const br_ssl_session_parameters *params);
LK__PRIV void lk__session_forget(llmkit_tls *tls, const uint8_t key[LK__SESSION_KEY]);

/* DER (X.690): takes the next element off the front of *in.  False, and *in as it was, where there
 * is none, or it is cut short, of indefinite length, or has a tag of more than one byte. */
typedef struct lk__der {
    uint8_t    tag;
    llmkit_str body;
    llmkit_str whole; /* with tag and length */
} lk__der;

LK__PRIV bool lk__der_next(llmkit_str *in, lk__der *out);
/* The next element, if its tag is this one. */
LK__PRIV bool lk__der_expect(llmkit_str *in, uint8_t tag, lk__der *out);

/* What we need of a certificate (RFC 5280 4.1), as views into its DER. */
typedef struct lk__cert {
    llmkit_str issuer, subject; /* Names, with their tags */
    llmkit_str key;             /* inside of SubjectPublicKeyInfo */
    llmkit_str alt_names;       /* inside of subjectAltName's sequence; empty where there is none */
    bool       is_ca;
} lk__cert;

LK__PRIV bool lk__cert_parse(llmkit_str der, lk__cert *out);
/* The public key, pointing into the DER; false: of a kind that BearSSL does not know. */
LK__PRIV bool lk__cert_pkey(const lk__cert *cert, br_x509_pkey *out);
/* A subjectAltName of type iPAddress holds exactly these bytes (RFC 5280 4.2.1.6). */
LK__PRIV bool lk__cert_has_ip(const lk__cert *cert, const uint8_t *ip, size_t ip_len);

/* PEM (RFC 7468): the next object of *text, decoded to out, which has room for text->len bytes. */
typedef struct lk__pem {
    llmkit_str label; /* "CERTIFICATE" */
    llmkit_str der;
    bool       broken; /* not Base64 throughout, such as an encrypted key in the old form */
} lk__pem;

LK__PRIV bool lk__pem_next(llmkit_str *text, uint8_t *out, lk__pem *pem);
#endif

/* References of shared trust; also without TLS, where they do nothing. */
LK__PRIV llmkit_tls *lk__tls_retain(llmkit_tls *tls);
LK__PRIV bool lk__tls_has_identity(const llmkit_tls *tls); /* a certificate to serve with */
