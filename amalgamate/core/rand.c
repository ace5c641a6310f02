/* core/rand.c -- random numbers for jitter, ids and hash keys; not for secrets */

#include "core/rand.h"

/* The device file rather than getentropy or getrandom: it is the one name that all our platforms
 * share under every feature macro, and it is read once per object, not per number. */
LK__PRIV bool lk__entropy(void *out, size_t n) {
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    size_t done = 0;
    while (done < n) {
        ssize_t got = read(fd, (char *)out + done, n - done);
        if (got > 0) {
            done += (size_t)got;
        } else if (got == 0 || errno != EINTR) {
            break;
        }
    }
    close(fd);
    return done == n;
}

/* splitmix64 (Steele, Lea and Flood, 2014): spreads a word over a state that is never all zero. */
LK__PRIV uint64_t lk__rand_split(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Without entropy of the system the address and the time still keep two processes apart. */
LK__PRIV void lk__rand_init(lk__rand *r, const llmkit_env *env) {
    uint64_t seed = env->seed;
    if (seed == 0 && !lk__entropy(&seed, sizeof seed)) {
        seed = (uint64_t)lk__now(env) ^ (uint64_t)(uintptr_t)r ^ (uint64_t)getpid() << 32;
    }
    for (size_t i = 0; i < LK__COUNT(r->s); i++) r->s[i] = lk__rand_split(&seed);
}

LK__PRIV uint64_t lk__rand_rotate(uint64_t x, unsigned by) {
    return x << by | x >> (64 - by);
}

LK__PRIV uint64_t lk__rand_u64(lk__rand *r) {
    uint64_t *s = r->s;
    uint64_t result = lk__rand_rotate(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = lk__rand_rotate(s[3], 45);
    return result;
}

/* The upper 53 bits: as many as a double holds, so that 1 is never reached by rounding. */
LK__PRIV double lk__rand_unit(lk__rand *r) {
    return (double)(lk__rand_u64(r) >> 11) * 0x1p-53;
}
