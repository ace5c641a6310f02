/* fuzz_der.c -- any bytes as a certificate and as PEM: views stay inside, BearSSL agrees
 *
 * The input is read as DER, and as the text of a PEM file. */
#define LLMKIT_IMPLEMENTATION
#define LLMKIT__KEEP_MACROS
#include "llmkit.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(x) ((x) ? (void)0 : abort())

static void inside(llmkit_str view, const char *data, size_t size) {
    if (view.len == 0) return;
    CHECK(view.ptr >= data && view.len <= size && view.ptr + view.len <= data + size);
}

/* What BearSSL's own decoder accepts, ours reads as well, with the same key. */
static void compare(const lk__cert *cert, bool parsed, const char *data, size_t size) {
    static br_x509_decoder_context dec;
    br_x509_pkey ours;
    br_x509_decoder_init(&dec, NULL, NULL);
    br_x509_decoder_push(&dec, data, size);
    br_x509_pkey *key = br_x509_decoder_get_pkey(&dec);
    if (!key || !parsed || !lk__cert_pkey(cert, &ours)) return;
    CHECK(ours.key_type == key->key_type);
    if (key->key_type == BR_KEYTYPE_EC) {
        CHECK(ours.key.ec.curve == key->key.ec.curve && ours.key.ec.qlen == key->key.ec.qlen);
        CHECK(memcmp(ours.key.ec.q, key->key.ec.q, key->key.ec.qlen) == 0);
    } else {
        CHECK(ours.key.rsa.nlen == key->key.rsa.nlen && ours.key.rsa.elen == key->key.rsa.elen);
        CHECK(memcmp(ours.key.rsa.n, key->key.rsa.n, key->key.rsa.nlen) == 0);
    }
}

static void as_der(const char *data, size_t size) {
    lk__cert cert;
    br_x509_pkey key;
    bool parsed = lk__cert_parse(lk__str(data, size), &cert);
    if (parsed) {
        inside(cert.issuer, data, size);
        inside(cert.subject, data, size);
        inside(cert.key, data, size);
        inside(cert.alt_names, data, size);
        lk__cert_pkey(&cert, &key);
        lk__cert_has_ip(&cert, (const uint8_t *)"\x7f\x00\x00\x01", 4);
        lk__cert_has_ip(&cert, (const uint8_t *)"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1", 16);
    }
    compare(&cert, parsed, data, size);
    llmkit_str in = { data, size };
    lk__der der;
    for (size_t before = size + 1; lk__der_next(&in, &der); before = in.len) {
        CHECK(in.len < before);
        inside(der.whole, data, size);
        inside(der.body, der.whole.ptr, der.whole.len);
    }
}

static void as_pem(const char *data, size_t size) {
    uint8_t *out = malloc(size + 1);
    llmkit_str in = { data, size };
    lk__pem pem;
    CHECK(out);
    for (size_t before = size + 1; lk__pem_next(&in, out, &pem); before = in.len) {
        CHECK(in.len < before);
        CHECK(pem.der.len <= size);
        inside(pem.label, data, size);
    }
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *copy = malloc(size ? size : 1); /* so that the sanitizer sees a byte too far */
    CHECK(copy);
    if (size) memcpy(copy, data, size);
    as_der(copy, size);
    as_pem(copy, size);
    free(copy);
    return 0;
}
