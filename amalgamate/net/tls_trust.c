/* net/tls_trust.c -- what TLS connections share: trust anchors, an identity, sessions */

#include "net/tls.h"

#if LLMKIT_WITH_TLS

enum {
    LK__TRUST_MAX_FILE = 8 << 20, /* the system bundles have 0.2 to 0.4 MB */
    LK__TRUST_MAX_CHAIN = 16,     /* certificates in an identity */
    LK__SESSION_CLIENT = 1024,    /* defaults of desc.max_sessions */
    LK__SESSION_SERVER = 4096,
    LK__SESSION_SERVED = 100 /* bytes of one entry in br_ssl_session_cache_lru */
};

/* RFC 5246 F.1.4 suggests 24 hours as the longest life of a session. */
#define LK__SESSION_MAX_NS (24 * 3600 * LK__NS_PER_S)

/* ---- DER and certificates --------------------------------------------------------------------*/

enum { /* tags that certificates use */
    LK__DER_BOOLEAN = 0x01,
    LK__DER_INTEGER = 0x02,
    LK__DER_BITS = 0x03,
    LK__DER_OCTETS = 0x04,
    LK__DER_OID = 0x06,
    LK__DER_SEQUENCE = 0x30,
    LK__DER_CONTEXT_0 = 0xa0,
    LK__DER_CONTEXT_3 = 0xa3,
    LK__DER_IP_ADDRESS = 0x87 /* GeneralName: [7] IMPLICIT OCTET STRING */
};

LK__PRIV bool lk__der_next(llmkit_str *in, lk__der *out) {
    const uint8_t *p = (const uint8_t *)in->ptr;
    if (in->len < 2 || (p[0] & 0x1f) == 0x1f) return false;
    size_t at = 2, len = p[1];
    if (len & 0x80) {
        size_t num = len & 0x7f;
        if (num == 0 || num > 3 || num > in->len - at) return false; /* 16 MiB are enough */
        for (len = 0; num > 0; num--) len = len << 8 | p[at++];
    }
    if (len > in->len - at) return false;
    *out = (lk__der){ p[0], lk__str(in->ptr + at, len), lk__str(in->ptr, at + len) };
    *in = lk__str_from(*in, at + len);
    return true;
}

LK__PRIV bool lk__der_expect(llmkit_str *in, uint8_t tag, lk__der *out) {
    return in->len > 0 && (uint8_t)in->ptr[0] == tag && lk__der_next(in, out);
}

/* Extension ::= SEQUENCE { extnID, critical DEFAULT FALSE, extnValue OCTET STRING } */
LK__PRIV bool lk__cert_extension(llmkit_str in, lk__cert *out) {
    lk__der id, flag, value, list;
    if (!lk__der_expect(&in, LK__DER_OID, &id)) return false;
    lk__der_expect(&in, LK__DER_BOOLEAN, &flag);
    if (!lk__der_expect(&in, LK__DER_OCTETS, &value)) return false;
    bool names = lk__str_eq(id.body, LK__STR("\x55\x1d\x11"));       /* subjectAltName */
    bool constraints = lk__str_eq(id.body, LK__STR("\x55\x1d\x13")); /* basicConstraints */
    if (!names && !constraints) return true;
    if (!lk__der_expect(&value.body, LK__DER_SEQUENCE, &list)) return false;
    if (names) out->alt_names = list.body;
    if (constraints && lk__der_expect(&list.body, LK__DER_BOOLEAN, &flag))
        out->is_ca = flag.body.len == 1 && flag.body.ptr[0] != 0;
    return true;
}

LK__PRIV bool lk__cert_extensions(llmkit_str in, lk__cert *out) {
    lk__der item;
    while (in.len > 0) {
        if (!lk__der_next(&in, &item)) return false;
        if (item.tag != LK__DER_CONTEXT_3) continue; /* the unique identifiers of version 2 */
        lk__der list, extension;
        if (!lk__der_expect(&item.body, LK__DER_SEQUENCE, &list)) return false;
        while (list.body.len > 0) {
            if (!lk__der_expect(&list.body, LK__DER_SEQUENCE, &extension)) return false;
            if (!lk__cert_extension(extension.body, out)) return false;
        }
    }
    return true;
}

LK__PRIV bool lk__cert_parse(llmkit_str der, lk__cert *out) {
    lk__der cert, tbs, skip, issuer, subject, key;
    memset(out, 0, sizeof *out);
    if (!lk__der_expect(&der, LK__DER_SEQUENCE, &cert) || der.len > 0) return false;
    if (!lk__der_expect(&cert.body, LK__DER_SEQUENCE, &tbs)) return false;
    llmkit_str in = tbs.body;
    lk__der_expect(&in, LK__DER_CONTEXT_0, &skip); /* the version; version 1 has none */
    if (!lk__der_expect(&in, LK__DER_INTEGER, &skip) ||  /* serial number */
        !lk__der_expect(&in, LK__DER_SEQUENCE, &skip) || /* signature algorithm */
        !lk__der_expect(&in, LK__DER_SEQUENCE, &issuer) ||
        !lk__der_expect(&in, LK__DER_SEQUENCE, &skip) || /* validity */
        !lk__der_expect(&in, LK__DER_SEQUENCE, &subject) ||
        !lk__der_expect(&in, LK__DER_SEQUENCE, &key))
        return false;
    out->issuer = issuer.whole;
    out->subject = subject.whole;
    out->key = key.body;
    return lk__cert_extensions(in, out);
}

/* An unsigned number without the leading zeros that DER or a careless issuer put there. */
LK__PRIV bool lk__cert_number(llmkit_str *in, llmkit_str *out) {
    lk__der number;
    if (!lk__der_expect(in, LK__DER_INTEGER, &number)) return false;
    *out = number.body;
    while (out->len > 0 && out->ptr[0] == 0) *out = lk__str_from(*out, 1);
    return out->len > 0;
}

LK__PRIV bool lk__cert_pkey_rsa(llmkit_str bits, br_rsa_public_key *out) {
    lk__der list;
    llmkit_str n, e;
    if (!lk__der_expect(&bits, LK__DER_SEQUENCE, &list) || !lk__cert_number(&list.body, &n) ||
        !lk__cert_number(&list.body, &e))
        return false;
    if (n.len + e.len > BR_X509_BUFSIZE_KEY) return false; /* BearSSL's limit: RSA-4096 */
    *out = (br_rsa_public_key){ (unsigned char *)n.ptr, n.len, (unsigned char *)e.ptr, e.len };
    return true;
}

LK__PRIV bool lk__cert_pkey_ec(llmkit_str oid, llmkit_str bits, br_ec_public_key *out) {
    int curve = 0;
    size_t width = 0; /* of a coordinate */
    if (lk__str_eq(oid, LK__STR("\x2a\x86\x48\xce\x3d\x03\x01\x07")))
        curve = BR_EC_secp256r1, width = 32;
    else if (lk__str_eq(oid, LK__STR("\x2b\x81\x04\x00\x22")))
        curve = BR_EC_secp384r1, width = 48;
    else if (lk__str_eq(oid, LK__STR("\x2b\x81\x04\x00\x23")))
        curve = BR_EC_secp521r1, width = 66;
    if (curve == 0 || bits.len != 1 + 2 * width || bits.ptr[0] != 4) return false;
    *out = (br_ec_public_key){ curve, (unsigned char *)bits.ptr, bits.len };
    return true;
}

/* RFC 3279 2.3.1 and RFC 5480 2.1.1 */
LK__PRIV bool lk__cert_pkey(const lk__cert *cert, br_x509_pkey *out) {
    llmkit_str in = cert->key;
    lk__der algorithm, id, curve, bits;
    if (!lk__der_expect(&in, LK__DER_SEQUENCE, &algorithm) ||
        !lk__der_expect(&in, LK__DER_BITS, &bits) ||
        !lk__der_expect(&algorithm.body, LK__DER_OID, &id))
        return false;
    if (bits.body.len == 0 || bits.body.ptr[0] != 0) return false; /* unused bits */
    bits.body = lk__str_from(bits.body, 1);
    if (lk__str_eq(id.body, LK__STR("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01"))) {
        out->key_type = BR_KEYTYPE_RSA;
        return lk__cert_pkey_rsa(bits.body, &out->key.rsa);
    }
    out->key_type = BR_KEYTYPE_EC;
    return lk__str_eq(id.body, LK__STR("\x2a\x86\x48\xce\x3d\x02\x01")) &&
           lk__der_expect(&algorithm.body, LK__DER_OID, &curve) &&
           lk__cert_pkey_ec(curve.body, bits.body, &out->key.ec);
}

LK__PRIV bool lk__cert_has_ip(const lk__cert *cert, const uint8_t *ip, size_t ip_len) {
    llmkit_str names = cert->alt_names;
    lk__der name;
    while (lk__der_next(&names, &name)) {
        if (name.tag == LK__DER_IP_ADDRESS && name.body.len == ip_len &&
            memcmp(name.body.ptr, ip, ip_len) == 0)
            return true;
    }
    return false;
}

/* ---- PEM -------------------------------------------------------------------------------------*/

/* BearSSL's own decoder takes 56 ms for a system bundle of 144 roots, and its decoder of
 * certificates 14 ms more; this and lk__cert_parse take less than 2 ms together. */

/* All ones if lo <= c <= hi, without a branch or a table: the text may be a private key's. */
LK__PRIV uint32_t lk__pem_within(uint32_t c, uint32_t lo, uint32_t hi) {
    return (((c - lo) | (hi - c)) >> 31) - 1;
}

/* The six bits of a Base64 digit, plus one; 0 for everything else. */
LK__PRIV uint32_t lk__pem_digit(uint32_t c) {
    return (lk__pem_within(c, 'A', 'Z') & (c - 'A' + 1)) |
           (lk__pem_within(c, 'a', 'z') & (c - 'a' + 27)) |
           (lk__pem_within(c, '0', '9') & (c - '0' + 53)) |
           (lk__pem_within(c, '+', '+') & 63) | (lk__pem_within(c, '/', '/') & 64);
}

LK__PRIV llmkit_str lk__pem_line(llmkit_str *text) {
    size_t end = lk__str_find(*text, '\n');
    llmkit_str line = lk__str(text->ptr, end);
    *text = lk__str_from(*text, end < text->len ? end + 1 : end);
    while (line.len > 0 && (uint8_t)line.ptr[line.len - 1] <= ' ') line.len--;
    return line;
}

LK__PRIV bool lk__pem_begins(llmkit_str line, llmkit_str *label) {
    llmkit_str begin = LK__STR("-----BEGIN "), end = LK__STR("-----");
    if (!lk__str_starts(line, begin) || !lk__str_ends(line, end)) return false;
    if (line.len < begin.len + end.len) return false;
    *label = lk__str(line.ptr + begin.len, line.len - begin.len - end.len);
    return true;
}

typedef struct lk__pem_bits {
    uint8_t *out;
    size_t   len;
    uint32_t bits, num; /* num bits are not yet written */
    bool     padded, broken;
} lk__pem_bits;

LK__PRIV void lk__pem_add(lk__pem_bits *b, llmkit_str line) {
    for (size_t i = 0; i < line.len; i++) {
        uint8_t c = (uint8_t)line.ptr[i];
        uint32_t digit = lk__pem_digit(c);
        if (digit == 0 || b->padded) {
            if (c == '=')
                b->padded = true;
            else if (c > ' ')
                b->broken = true;
            continue;
        }
        b->bits = b->bits << 6 | (digit - 1);
        b->num += 6;
        if (b->num >= 8) {
            b->num -= 8;
            b->out[b->len++] = (uint8_t)(b->bits >> b->num);
        }
    }
}

LK__PRIV bool lk__pem_next(llmkit_str *text, uint8_t *out, lk__pem *pem) {
    memset(pem, 0, sizeof *pem);
    while (text->len > 0 && !lk__pem_begins(lk__pem_line(text), &pem->label)) {}
    if (pem->label.len == 0) return false;
    lk__pem_bits bits = { .out = out };
    while (text->len > 0) {
        llmkit_str line = lk__pem_line(text);
        if (lk__str_starts(line, LK__STR("-----END "))) {
            pem->broken = bits.broken || bits.len == 0;
            pem->der = lk__str((char *)out, bits.len);
            return true;
        }
        lk__pem_add(&bits, line);
    }
    pem->broken = true; /* no end */
    return true;
}

/* ---- Texts from files ------------------------------------------------------------------------*/

/* A PEM text: the caller's, or a file's, which is wiped and freed. */
typedef struct lk__pem_text {
    llmkit_str  text;
    const char *name; /* for messages: the path, or the field of the desc */
    char       *owned;
    size_t      owned_size;
} lk__pem_text;

LK__PRIV void lk__pem_text_free(lk__pem_text *t, const llmkit_env *env) {
    if (!t->owned) return;
    lk__wipe(t->owned, t->owned_size);
    lk__free(env, t->owned, t->owned_size);
    t->owned = NULL;
}

/* Doubles the room.  Not by lk__resize: that may leave a copy of a key behind. */
LK__PRIV bool lk__pem_text_grow(lk__pem_text *t, const llmkit_env *env) {
    size_t size = t->owned ? t->owned_size * 2 : 4096;
    char *more = lk__alloc(env, size);
    if (!more) return false;
    if (t->text.len > 0) memcpy(more, t->owned, t->text.len);
    lk__pem_text_free(t, env);
    t->owned = more;
    t->owned_size = size;
    t->text.ptr = more;
    return true;
}

/* Reads to the end rather than by the file's size: a key may come through a pipe. */
LK__PRIV llmkit_err lk__pem_text_fill(lk__pem_text *t, const llmkit_env *env, int fd,
                                      llmkit_error *error) {
    for (;;) {
        if (t->text.len == t->owned_size) {
            if (t->text.len >= LK__TRUST_MAX_FILE)
                return lk__fail(error, LLMKIT_E_TOO_BIG, "%s is larger than %d MiB", t->name,
                                LK__TRUST_MAX_FILE >> 20);
            if (!lk__pem_text_grow(t, env))
                return lk__fail(error, LLMKIT_E_NOMEM, "no memory to read %s", t->name);
        }
        ssize_t n = read(fd, t->owned + t->text.len, t->owned_size - t->text.len);
        if (n == 0) return LLMKIT_OK;
        if (n > 0)
            t->text.len += (size_t)n;
        else if (errno != EINTR)
            return lk__fail_os(error, LLMKIT_E_IO, errno, "reading %s", t->name);
    }
}

LK__PRIV llmkit_err lk__pem_text_read(lk__pem_text *t, const llmkit_env *env, const char *path,
                                      llmkit_error *error) {
    *t = (lk__pem_text){ .name = path };
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return lk__fail_os(error, LLMKIT_E_IO, errno, "opening %s", path);
    llmkit_err err = lk__pem_text_fill(t, env, fd, error);
    close(fd);
    if (err) lk__pem_text_free(t, env);
    return err;
}

/* One of the two is not NULL. */
LK__PRIV llmkit_err lk__pem_text_open(lk__pem_text *t, const llmkit_env *env, const char *path,
                                      const char *pem, const char *pem_field,
                                      llmkit_error *error) {
    if (path) return lk__pem_text_read(t, env, path, error);
    *t = (lk__pem_text){ .text = lk__str_z(pem), .name = pem_field };
    return LLMKIT_OK;
}

/* ---- Trust anchors ---------------------------------------------------------------------------*/

LK__PRIV size_t lk__anchor_size(const br_x509_trust_anchor *a) {
    const br_x509_pkey *k = &a->pkey;
    return a->dn.len + (k->key_type == BR_KEYTYPE_RSA ? k->key.rsa.nlen + k->key.rsa.elen
                                                      : k->key.ec.qlen);
}

LK__PRIV void lk__anchors_free(lk__anchors *a, const llmkit_env *env) {
    for (size_t i = 0; i < a->num; i++)
        lk__free(env, a->list[i].dn.data, lk__anchor_size(&a->list[i]));
    lk__free(env, a->list, a->cap * sizeof *a->list);
    *a = (lk__anchors){ 0 };
}

/* Copies the name and the key, which still point into the certificate, into a block of its own. */
LK__PRIV bool lk__anchor_own(br_x509_trust_anchor *a, const llmkit_env *env) {
    uint8_t *p = lk__alloc(env, lk__anchor_size(a));
    if (!p) return false;
    memcpy(p, a->dn.data, a->dn.len);
    a->dn.data = p;
    p += a->dn.len;
    if (a->pkey.key_type == BR_KEYTYPE_RSA) {
        br_rsa_public_key *k = &a->pkey.key.rsa;
        memcpy(p, k->n, k->nlen);
        k->n = p;
        memcpy(p + k->nlen, k->e, k->elen);
        k->e = p + k->nlen;
    } else {
        br_ec_public_key *k = &a->pkey.key.ec;
        memcpy(p, k->q, k->qlen);
        k->q = p;
    }
    return true;
}

/* A certificate that is no CA's is trusted itself, if a server presents just that one. */
LK__PRIV llmkit_err lk__anchors_add(lk__anchors *a, const llmkit_env *env, llmkit_str der) {
    lk__cert cert;
    br_x509_trust_anchor anchor = { 0 };
    if (!lk__cert_parse(der, &cert) || !lk__cert_pkey(&cert, &anchor.pkey)) return LLMKIT_E_CERT;
    if (a->num == a->cap) {
        size_t cap = a->cap ? a->cap * 2 : 16;
        void *list = lk__resize(env, a->list, a->cap * sizeof *a->list, cap * sizeof *a->list);
        if (!list) return LLMKIT_E_NOMEM;
        a->list = list;
        a->cap = cap;
    }
    anchor.flags = cert.is_ca ? BR_X509_TA_CA : 0;
    anchor.dn = (br_x500_name){ (unsigned char *)cert.subject.ptr, cert.subject.len };
    if (!lk__anchor_own(&anchor, env)) return LLMKIT_E_NOMEM;
    a->list[a->num++] = anchor;
    return LLMKIT_OK;
}

LK__PRIV bool lk__pem_is_cert(const lk__pem *pem) {
    return lk__str_eq(pem->label, LK__STR("CERTIFICATE")) ||
           lk__str_eq(pem->label, LK__STR("X509 CERTIFICATE"));
}

/* Bundles hold a certificate now and then that BearSSL cannot use (an Ed25519 key): those are left
 * out.  A text without a single usable one is a mistake. */
LK__PRIV llmkit_err lk__anchors_load(llmkit_tls *tls, const lk__pem_text *t, llmkit_error *error) {
    const llmkit_env *env = &tls->env;
    lk__anchors anchors = { 0 };
    llmkit_err err = LLMKIT_OK;
    llmkit_str text = t->text;
    lk__pem pem;
    unsigned nth = 0;
    size_t size = text.len + 1;
    uint8_t *der = lk__alloc(env, size);
    if (!der) err = LLMKIT_E_NOMEM;
    while (!err && lk__pem_next(&text, der, &pem)) {
        if (!lk__pem_is_cert(&pem)) continue;
        nth++;
        err = pem.broken ? LLMKIT_E_CERT : lk__anchors_add(&anchors, env, pem.der);
        if (err != LLMKIT_E_CERT) continue;
        lk__log(env, LLMKIT_DEBUG, err, "%s: certificate %u is left out: BearSSL cannot use it",
                t->name, nth);
        err = LLMKIT_OK;
    }
    lk__free(env, der, size);
    if (err == LLMKIT_OK && anchors.num == 0)
        err = lk__fail(error, LLMKIT_E_ARG, "%s has no certificate in PEM that can be used",
                       t->name);
    else if (err)
        lk__fail(error, err, "no memory for the trust anchors in %s", t->name);
    if (err) {
        lk__anchors_free(&anchors, env);
        return err;
    }
    tls->anchors = anchors;
    lk__store_release(&tls->trust_ready, (uint32_t)anchors.num);
    return LLMKIT_OK;
}

static const char *const lk__trust_paths[] = {
    "/etc/ssl/certs/ca-certificates.crt",                /* Debian, Alpine, Arch */
    "/etc/pki/tls/certs/ca-bundle.crt",                  /* Fedora, RHEL */
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", /* newer RHEL */
    "/etc/ssl/ca-bundle.pem",                            /* SUSE */
    "/etc/ssl/cert.pem",                                 /* macOS, BSDs, Alpine */
    "/usr/local/share/certs/ca-root-nss.crt",            /* FreeBSD with the package */
    "/etc/openssl/certs/ca-certificates.crt"             /* NetBSD */
};

LK__PRIV const char *lk__trust_path(const llmkit_tls *tls) {
    if (tls->bundle) return tls->bundle;
    for (size_t i = 0; i < LK__COUNT(lk__trust_paths); i++)
        if (access(lk__trust_paths[i], R_OK) == 0) return lk__trust_paths[i];
    return NULL;
}

LK__PRIV llmkit_err lk__trust_load(llmkit_tls *tls, llmkit_error *error) {
    lk__pem_text text;
    const char *path = lk__trust_path(tls);
    if (!path)
        return lk__fail(error, LLMKIT_E_CERT,
                        "this system has no bundle of trust anchors where one is usually kept; name"
                        " one with ca_file");
    llmkit_err err = lk__pem_text_read(&text, &tls->env, path, error);
    if (err) return err;
    err = lk__anchors_load(tls, &text, error);
    lk__pem_text_free(&text, &tls->env);
    return err;
}

/* Whoever comes second waits for the first: loading takes milliseconds, once.  What failed is tried
 * again by the next handshake. */
LK__PRIV llmkit_err lk__tls_trust(llmkit_tls *tls, llmkit_error *error) {
    if (lk__load_acquire(&tls->trust_ready)) return LLMKIT_OK;
    llmkit_err err = LLMKIT_OK;
    lk__lock(&tls->trust_lock);
    if (!lk__load_acquire(&tls->trust_ready)) err = lk__trust_load(tls, error);
    lk__unlock(&tls->trust_lock);
    if (err && error && err != LLMKIT_E_NOMEM) error->retryable = false;
    return err;
}

/* ---- Identity --------------------------------------------------------------------------------*/

LK__PRIV void lk__identity_free(lk__identity *id, const llmkit_env *env) {
    for (size_t i = 0; i < id->chain_len; i++)
        lk__free(env, id->chain[i].data, id->chain[i].data_len);
    lk__free(env, id->chain, LK__TRUST_MAX_CHAIN * sizeof *id->chain);
    if (id->key) lk__wipe(id->key, sizeof *id->key);
    lk__free(env, id->key, sizeof *id->key);
    *id = (lk__identity){ 0 };
}

LK__PRIV llmkit_err lk__identity_cert(lk__identity *id, const llmkit_env *env, const lk__pem *pem,
                                      const char *name, llmkit_error *error) {
    if (pem->broken)
        return lk__fail(error, LLMKIT_E_ARG, "%s: certificate %u is not valid PEM", name,
                        (unsigned)id->chain_len + 1);
    if (id->chain_len == LK__TRUST_MAX_CHAIN)
        return lk__fail(error, LLMKIT_E_TOO_BIG, "%s has more than %d certificates", name,
                        LK__TRUST_MAX_CHAIN);
    unsigned char *copy = lk__alloc(env, pem->der.len);
    if (!copy) return lk__fail(error, LLMKIT_E_NOMEM, "no memory for the certificates in %s", name);
    memcpy(copy, pem->der.ptr, pem->der.len);
    id->chain[id->chain_len++] = (br_x509_certificate){ copy, pem->der.len };
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__identity_chain(lk__identity *id, const llmkit_env *env,
                                       const lk__pem_text *t, llmkit_error *error) {
    llmkit_err err = LLMKIT_OK;
    llmkit_str text = t->text;
    lk__pem pem;
    size_t size = t->text.len + 1;
    uint8_t *der = lk__alloc(env, size);
    id->chain = lk__alloc(env, LK__TRUST_MAX_CHAIN * sizeof *id->chain);
    if (!der || !id->chain)
        err = lk__fail(error, LLMKIT_E_NOMEM, "no memory for the certificates in %s", t->name);
    while (!err && lk__pem_next(&text, der, &pem))
        if (lk__pem_is_cert(&pem)) err = lk__identity_cert(id, env, &pem, t->name, error);
    if (!err && id->chain_len == 0)
        err = lk__fail(error, LLMKIT_E_ARG, "%s has no certificate in PEM", t->name);
    lk__free(env, der, size);
    return err;
}

LK__PRIV llmkit_err lk__identity_decode(lk__identity *id, const lk__pem *pem, const char *name,
                                        llmkit_error *error) {
    if (pem->broken || lk__str_starts(pem->label, LK__STR("ENCRYPTED")))
        return lk__fail(error, LLMKIT_E_ARG,
                        "the private key in %s is encrypted or damaged; decrypt it with: openssl"
                        " pkey -in FILE", name);
    br_skey_decoder_init(id->key);
    br_skey_decoder_push(id->key, pem->der.ptr, pem->der.len);
    if (br_skey_decoder_last_error(id->key) != 0)
        return lk__fail(error, LLMKIT_E_ARG,
                        "the private key in %s is none that BearSSL knows: RSA up to 4096 bits, or"
                        " EC on P-256, P-384 or P-521", name);
    return LLMKIT_OK;
}

LK__PRIV llmkit_err lk__identity_key(lk__identity *id, const llmkit_env *env,
                                     const lk__pem_text *t, llmkit_error *error) {
    llmkit_err err = LLMKIT_OK;
    llmkit_str text = t->text;
    lk__pem pem = { 0 };
    size_t size = t->text.len + 1;
    uint8_t *der = lk__alloc(env, size);
    id->key = lk__alloc(env, sizeof *id->key);
    bool found = false;
    if (!der || !id->key)
        err = lk__fail(error, LLMKIT_E_NOMEM, "no memory for the private key in %s", t->name);
    while (!err && !found && lk__pem_next(&text, der, &pem))
        found = lk__str_ends(pem.label, LK__STR("PRIVATE KEY"));
    if (!err && !found)
        err = lk__fail(error, LLMKIT_E_ARG, "%s has no private key in PEM", t->name);
    if (!err) err = lk__identity_decode(id, &pem, t->name, error);
    if (der) lk__wipe(der, size);
    lk__free(env, der, size);
    return err;
}

/* The public key that belongs to the private one is the one in the certificate. */
LK__PRIV bool lk__identity_matches(const lk__identity *id) {
    lk__cert cert;
    br_x509_pkey have = { 0 };
    const br_rsa_private_key *rsa = br_skey_decoder_get_rsa(id->key);
    const br_ec_private_key *ec = br_skey_decoder_get_ec(id->key);
    llmkit_str der = lk__str((char *)id->chain[0].data, id->chain[0].data_len);
    if (!lk__cert_parse(der, &cert) || !lk__cert_pkey(&cert, &have)) return false;
    if (rsa && have.key_type == BR_KEYTYPE_RSA) {
        unsigned char n[BR_X509_BUFSIZE_SIG];
        br_rsa_compute_modulus compute = br_rsa_compute_modulus_get_default();
        size_t len = compute(NULL, rsa);
        return len == have.key.rsa.nlen && len <= sizeof n && compute(n, rsa) == len &&
               memcmp(n, have.key.rsa.n, len) == 0;
    }
    if (ec && have.key_type == BR_KEYTYPE_EC && ec->curve == have.key.ec.curve) {
        unsigned char point[BR_EC_KBUF_PUB_MAX_SIZE];
        size_t len = br_ec_compute_pub(br_ec_get_default(), NULL, point, ec);
        return len > 0 && len == have.key.ec.qlen && memcmp(point, have.key.ec.q, len) == 0;
    }
    return false;
}

LK__PRIV llmkit_err lk__identity_load(lk__identity *id, const llmkit_env *env,
                                      const llmkit_tls_desc *d, llmkit_error *error) {
    lk__pem_text text;
    llmkit_err err =
        lk__pem_text_open(&text, env, d->cert_file, d->cert_pem, "cert_pem", error);
    if (err) return err;
    err = lk__identity_chain(id, env, &text, error);
    lk__pem_text_free(&text, env);
    if (err) return err;
    err = lk__pem_text_open(&text, env, d->key_file, d->key_pem, "key_pem", error);
    if (err) return err;
    err = lk__identity_key(id, env, &text, error);
    if (!err && !lk__identity_matches(id))
        err = lk__fail(error, LLMKIT_E_ARG,
                       "the private key in %s does not belong to the first certificate in %s",
                       text.name, d->cert_file ? d->cert_file : "cert_pem");
    lk__pem_text_free(&text, env);
    return err;
}

/* ---- Peers and sessions ----------------------------------------------------------------------*/

LK__PRIV llmkit_err lk__tls_peer_set(lk__tls_peer *peer, const char *host, llmkit_error *error) {
    memset(peer, 0, sizeof *peer);
    llmkit_str name = lk__str_z(host);
    bool is_v6 = lk__str_find(name, ':') < name.len;
    if (is_v6) name.len = lk__str_find(name, '%'); /* the zone is ours, not the certificate's */
    if (!is_v6 && lk__str_ends(name, LK__STR("."))) name.len--;
    if (name.len == 0 || name.len >= sizeof peer->name)
        return lk__fail(error, LLMKIT_E_ARG, "a TLS host name has 1 to %d bytes, not %u",
                        (int)sizeof peer->name - 1, (unsigned)name.len);
    for (size_t i = 0; i < name.len; i++) peer->name[i] = lk__lower(name.ptr[i]);
    if (inet_pton(is_v6 ? AF_INET6 : AF_INET, peer->name, peer->ip) == 1)
        peer->ip_len = is_v6 ? 16 : 4;
    return LLMKIT_OK;
}

LK__PRIV void lk__session_key(uint8_t key[LK__SESSION_KEY], const lk__tls_peer *peer,
                              uint16_t port) {
    uint8_t end[3] = { 0, (uint8_t)(port >> 8), (uint8_t)port };
    br_sha256_context hash;
    br_sha256_init(&hash);
    br_sha256_update(&hash, peer->name, strlen(peer->name));
    br_sha256_update(&hash, end, sizeof end);
    br_sha256_out(&hash, key);
}

/* The set of LK__SESSION_WAYS entries in which the key belongs.  The key is a hash already. */
LK__PRIV lk__session *lk__session_set(const llmkit_tls *tls, const uint8_t *key) {
    uint32_t hash = 0;
    memcpy(&hash, key, sizeof hash);
    return &tls->sessions[hash % (tls->num_sessions / LK__SESSION_WAYS) * LK__SESSION_WAYS];
}

LK__PRIV lk__session *lk__session_at(const llmkit_tls *tls, const uint8_t *key) {
    if (!tls->sessions) return NULL;
    lk__session *set = lk__session_set(tls, key);
    for (int i = 0; i < LK__SESSION_WAYS; i++)
        if (set[i].used && memcmp(set[i].key, key, LK__SESSION_KEY) == 0) return &set[i];
    return NULL;
}

LK__PRIV bool lk__session_find(llmkit_tls *tls, const uint8_t key[LK__SESSION_KEY],
                               br_ssl_session_parameters *out) {
    lk__lock(&tls->session_lock);
    lk__session *s = lk__session_at(tls, key);
    if (s && lk__now(&tls->env) - s->born_ns > LK__SESSION_MAX_NS) {
        lk__wipe(s, sizeof *s);
        s = NULL;
    }
    if (s) s->used = ++tls->session_clock;
    if (s && out) *out = s->params;
    lk__unlock(&tls->session_lock);
    return s != NULL;
}

/* The table is made with the first session: whoever connects to no https: server pays nothing. */
LK__PRIV bool lk__session_table(llmkit_tls *tls) {
    if (tls->sessions) return true;
    size_t num = tls->max_sessions ? tls->max_sessions : LK__SESSION_CLIENT;
    num = lk__add(num, LK__SESSION_WAYS - 1) / LK__SESSION_WAYS * LK__SESSION_WAYS;
    tls->sessions = lk__alloc(&tls->env, lk__mul(num, sizeof *tls->sessions));
    if (tls->sessions) tls->num_sessions = num;
    return tls->sessions != NULL;
}

/* Without memory the session is not kept: the next handshake is a full one. */
LK__PRIV void lk__session_keep(llmkit_tls *tls, const uint8_t key[LK__SESSION_KEY],
                               const br_ssl_session_parameters *params) {
    lk__lock(&tls->session_lock);
    if (lk__session_table(tls)) {
        lk__session *s = lk__session_at(tls, key), *set = lk__session_set(tls, key);
        if (!s) {
            s = set; /* the one that was not used for the longest time, or never */
            for (int i = 1; i < LK__SESSION_WAYS; i++)
                if (set[i].used < s->used) s = &set[i];
        }
        memcpy(s->key, key, LK__SESSION_KEY);
        s->params = *params;
        s->born_ns = lk__now(&tls->env);
        s->used = ++tls->session_clock;
    }
    lk__unlock(&tls->session_lock);
}

LK__PRIV void lk__session_forget(llmkit_tls *tls, const uint8_t key[LK__SESSION_KEY]) {
    lk__lock(&tls->session_lock);
    lk__session *s = lk__session_at(tls, key);
    if (s) lk__wipe(s, sizeof *s);
    lk__unlock(&tls->session_lock);
}

LK__PRIV llmkit_err lk__tls_serve_sessions(llmkit_tls *tls, llmkit_error *error) {
    lk__lock(&tls->session_lock);
    if (!tls->served) {
        size_t num = tls->max_sessions ? tls->max_sessions : LK__SESSION_SERVER;
        size_t bytes = lk__mul(num, LK__SESSION_SERVED);
        if (bytes > UINT32_MAX) bytes = UINT32_MAX; /* BearSSL's limit */
        tls->served = lk__alloc(&tls->env, bytes);
        if (tls->served) {
            tls->served_bytes = bytes;
            br_ssl_session_cache_lru_init(&tls->served_lru, tls->served, bytes);
        }
    }
    bool made = tls->served != NULL;
    lk__unlock(&tls->session_lock);
    return made ? LLMKIT_OK : lk__fail(error, LLMKIT_E_NOMEM, "no memory for max_sessions");
}

/* ---- The shared object -----------------------------------------------------------------------*/

LK__PRIV void lk__tls_destroy(llmkit_tls *tls) {
    llmkit_env env = tls->env;
    size_t bytes = tls->num_sessions * sizeof *tls->sessions;
    if (tls->sessions) lk__wipe(tls->sessions, bytes);
    lk__free(&env, tls->sessions, bytes);
    if (tls->served) lk__wipe(tls->served, tls->served_bytes);
    lk__free(&env, tls->served, tls->served_bytes);
    lk__anchors_free(&tls->anchors, &env);
    lk__identity_free(&tls->identity, &env);
    lk__strfree(&env, tls->bundle);
    lk__mutex_free(&tls->trust_lock);
    lk__mutex_free(&tls->session_lock);
    lk__wipe(tls, sizeof *tls); /* the state of random numbers */
    lk__free(&env, tls, sizeof *tls);
}

LK__PRIV llmkit_err lk__tls_check(const llmkit_tls_desc *d, llmkit_error *error) {
    llmkit_err err = lk__check_guards(error, d->_guard0, d->_guard1, "llmkit_tls_desc");
    if (err) return err;
    const char *wrong = NULL;
    bool cert = d->cert_file || d->cert_pem, key = d->key_file || d->key_pem;
    if (cert && !key) wrong = "a certificate needs its private key: key_file or key_pem";
    if (key && !cert) wrong = "a private key needs its certificate: cert_file or cert_pem";
    if (d->ca_file && d->ca_pem) wrong = "ca_file and ca_pem exclude each other";
    if (d->cert_file && d->cert_pem) wrong = "cert_file and cert_pem exclude each other";
    if (d->key_file && d->key_pem) wrong = "key_file and key_pem exclude each other";
    return wrong ? lk__fail(error, LLMKIT_E_ARG, "%s", wrong) : LLMKIT_OK;
}

/* The environment is read here and not at the first handshake, which may be in another thread. */
LK__PRIV llmkit_err lk__tls_bundle(llmkit_tls *tls, llmkit_error *error) {
    const char *path = NULL;
#if LLMKIT_WITH_GETENV
    path = getenv("SSL_CERT_FILE");
#endif
    if (!path || !path[0]) return LLMKIT_OK;
    tls->bundle = lk__strdup(&tls->env, path);
    return tls->bundle ? LLMKIT_OK : lk__fail(error, LLMKIT_E_NOMEM, "no memory for SSL_CERT_FILE");
}

LK__PRIV llmkit_err lk__tls_load(llmkit_tls *tls, const llmkit_tls_desc *d, llmkit_error *error) {
    llmkit_err err = LLMKIT_OK;
    if (d->ca_file || d->ca_pem) {
        lk__pem_text text;
        err = lk__pem_text_open(&text, &tls->env, d->ca_file, d->ca_pem, "ca_pem", error);
        if (err) return err;
        err = lk__anchors_load(tls, &text, error);
        lk__pem_text_free(&text, &tls->env);
    } else {
        err = lk__tls_bundle(tls, error);
    }
    if (!err && (d->cert_file || d->cert_pem))
        err = lk__identity_load(&tls->identity, &tls->env, d, error);
    return err ? err : lk__tls_prepare(tls, error);
}

LLMKIT_API llmkit_tls *llmkit_tls_create(const llmkit_tls_desc *desc, llmkit_error *error) {
    static const llmkit_tls_desc defaults = { 0 };
    if (!desc) desc = &defaults;
    if (lk__tls_check(desc, error)) return NULL;
    llmkit_env env = lk__env_fill(&desc->env);
    llmkit_tls *tls = lk__alloc(&env, sizeof *tls);
    if (!tls) {
        lk__fail(error, LLMKIT_E_NOMEM, "no memory for a llmkit_tls");
        return NULL;
    }
    tls->env = env;
    tls->max_sessions = desc->max_sessions;
    lk__store_relaxed(&tls->refs, 1);
    lk__mutex_init(&tls->trust_lock);
    lk__mutex_init(&tls->session_lock);
    if (lk__tls_load(tls, desc, error)) {
        lk__tls_destroy(tls);
        return NULL;
    }
    return tls;
}

LK__PRIV llmkit_tls *lk__tls_retain(llmkit_tls *tls) {
    if (tls) (void)lk__add_relaxed(&tls->refs, 1);
    return tls;
}

LLMKIT_API void llmkit_tls_release(llmkit_tls *tls) {
    if (tls && lk__sub_acq_rel(&tls->refs, 1) == 1) lk__tls_destroy(tls);
}

LK__PRIV bool lk__tls_has_identity(const llmkit_tls *tls) {
    return tls && tls->identity.chain_len > 0;
}

LLMKIT_API llmkit_tls_stats llmkit_tls_read(const llmkit_tls *tls) {
    return (llmkit_tls_stats){
        .handshakes = lk__load_relaxed(&tls->handshakes),
        .resumed = lk__load_relaxed(&tls->resumed),
        .failed = lk__load_relaxed(&tls->failed),
        .anchors = lk__load_acquire(&tls->trust_ready),
    };
}

#undef LK__SESSION_MAX_NS

#else

LLMKIT_API llmkit_tls *llmkit_tls_create(const llmkit_tls_desc *desc, llmkit_error *error) {
    (void)desc;
    lk__fail_disabled(error, "LLMKIT_WITH_TLS");
    return NULL;
}

LLMKIT_API void llmkit_tls_release(llmkit_tls *tls) {
    (void)tls;
}

LLMKIT_API llmkit_tls_stats llmkit_tls_read(const llmkit_tls *tls) {
    (void)tls;
    return (llmkit_tls_stats){ 0 };
}

LK__PRIV llmkit_tls *lk__tls_retain(llmkit_tls *tls) {
    return tls;
}

LK__PRIV bool lk__tls_has_identity(const llmkit_tls *tls) {
    (void)tls;
    return false;
}

#endif
