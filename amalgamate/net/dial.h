/* net/dial.h -- a TCP or Unix connection to the first of several addresses that answers */
#pragma once

#include "net/dns.h"

/* Addresses are tried in their order, the next one after 250 ms or as soon as one fails, while the
 * earlier ones go on (RFC 8305 section 5).  One dial, on the heap while it runs. */
typedef struct lk__dial lk__dial;

/* fn is called once, from the loop, unless the dial is stopped: with a connected non-blocking
 * descriptor, or -1 and the error of the address that failed last. */
LK__PRIV lk__dial *lk__dial_start(llmkit_loop *loop, const lk__addrs *addrs,
                                  void (*fn)(void *user, int fd, const llmkit_error *error),
                                  void *user);
LK__PRIV void lk__dial_stop(lk__dial *dial); /* NULL is fine */
