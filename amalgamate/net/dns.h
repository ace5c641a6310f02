/* net/dns.h -- name resolution off the loop's thread */
#pragma once

#include "net/loop.h"

typedef struct lk__addr {
    union {
        struct sockaddr     any;
        struct sockaddr_in  v4;
        struct sockaddr_in6 v6;
        struct sockaddr_un  un; /* never from a lookup */
    } at;
    socklen_t len;
} lk__addr;

enum { LK__MAX_ADDRS = 16 };

typedef struct lk__addrs {
    lk__addr addr[LK__MAX_ADDRS]; /* in the order to try: families alternate (RFC 8305 section 4) */
    uint32_t num;
} lk__addrs;

/* One lookup, embedded in its owner.  Zero is none. */
typedef struct lk__lookup {
    struct lk__lookup_job *job; /* NULL: not running */
    /* error NULL: addrs has at least one; else why not (E_DNS, E_NOMEM) */
    void (*fn)(struct lk__lookup *lookup, const lk__addrs *addrs, const llmkit_error *error);
} lk__lookup;

/* IP addresses and, without threads, all names are answered without a thread; fn is called on the
 * loop's thread, never inside this. */
LK__PRIV llmkit_err lk__lookup_start(llmkit_loop *loop, lk__lookup *lookup, llmkit_str host,
                                     uint16_t port, llmkit_error *error);
LK__PRIV void lk__lookup_cancel(llmkit_loop *loop, lk__lookup *lookup); /* fn is not called */
/* "192.0.2.1", "2001:db8::1" (no brackets, scope ids allowed); false: it is a name. */
LK__PRIV bool lk__addr_parse(lk__addr *addr, llmkit_str text, uint16_t port);
