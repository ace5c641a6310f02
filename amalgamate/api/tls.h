/* api/tls.h -- trust, identity and TLS sessions, shared by clients, servers and threads */
#pragma once

/* Reference-counted: create gives one reference, each client or server that is given one takes its
 * own, release drops one.  Any thread.
 *
 * TLS 1.2 (RFC 5246) through BearSSL, with ECDHE and AES-GCM or ChaCha20-Poly1305 only.  A server's
 * chain is verified in full, for its name or its IP address.  What BearSSL does not do: TLS 1.3,
 * revocation (CRL, OCSP), name constraints, RSA-PSS and Ed25519 certificates, chains out of order;
 * a certificate without subjectAltName is matched by its common name. */
typedef struct llmkit_tls llmkit_tls;

/* All zero: the system's trust anchors, no certificate of our own.  Files are read and copied in
 * llmkit_tls_create, but for the system's bundle: that is read at the first handshake. */
typedef struct llmkit_tls_desc {
    uint32_t    _guard0;
    llmkit_env  env;
    const char *ca_file;   /* PEM trust anchors; default: SSL_CERT_FILE, then the system's */
    const char *ca_pem;    /* or its text */
    const char *cert_file; /* PEM chain, leaf first: a server's identity, or a client's */
    const char *key_file;  /* PEM private key, PKCS#1, SEC1 or PKCS#8, not encrypted */
    const char *cert_pem, *key_pem; /* or their texts */
    /* Remembered for resumption; default 1024 hosts (client), 4096 clients (server). */
    uint32_t    max_sessions;
    uint32_t    _guard1;
} llmkit_tls_desc;

typedef struct llmkit_tls_stats {
    uint64_t handshakes; /* completed, resumed ones included */
    uint64_t resumed;
    uint64_t failed;  /* ended before they were complete; counted when the connection is freed */
    uint32_t anchors; /* trust anchors loaded so far */
} llmkit_tls_stats;

/* desc NULL: all defaults.  NULL on failure; error may be NULL. */
LLMKIT_API llmkit_tls *llmkit_tls_create(const llmkit_tls_desc *desc, llmkit_error *error);
LLMKIT_API void llmkit_tls_release(llmkit_tls *tls); /* NULL is fine */
LLMKIT_API llmkit_tls_stats llmkit_tls_read(const llmkit_tls *tls);
