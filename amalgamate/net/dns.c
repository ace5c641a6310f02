/* net/dns.c -- getaddrinfo in threads of its own, a few at a time */

#include "net/dns.h"
#include "net/loop_parts.h"

enum {
    LK__MAX_HOST = 255,   /* RFC 1035 section 3.1, and more than any address with its scope */
    LK__MAX_RESOLVING = 8 /* threads at once for each loop; further names wait */
};

/* getaddrinfo cannot be interrupted: it may go on for half a minute after its lookup was cancelled
 * and its loop destroyed.  So what its thread touches belongs to neither, and comes from the
 * default allocator, since the caller's may be gone as well. */
typedef struct lk__resolver {
    lk__annex annex;   /* in the loop */
    lk__post post;     /* tells the loop of answers */
    lk__queue arrived; /* answers that the loop's thread has taken */
    llmkit_env env;    /* all defaults */

    lk__mutex mutex;   /* guards the rest, and lookup in all jobs that wait or run */
    llmkit_loop *loop; /* NULL: destroyed */
    lk__queue waiting, answered;
    uint32_t threads;
    uint32_t refs; /* of the loop and of each thread */
    bool sent;     /* post is on its way */
} lk__resolver;

typedef struct lk__lookup_job {
    lk__task task;
    lk__resolver *resolver;
    lk__lookup *lookup; /* NULL: cancelled */
    int (*getaddrinfo)(const char *node, const char *service, const struct addrinfo *hints,
                       struct addrinfo **list);
    void (*freeaddrinfo)(struct addrinfo *list);
    lk__addrs addrs;
    int code, os_errno; /* of getaddrinfo */
    uint16_t port;
    char host[LK__MAX_HOST + 1];
} lk__lookup_job;

/* Addresses. */

LK__PRIV void lk__addr_set(lk__addr *addr, const void *from, size_t len, uint16_t port) {
    memset(addr, 0, sizeof(*addr));
    memcpy(&addr->at, from, len);
    addr->len = (socklen_t)len;
    if (addr->at.any.sa_family == AF_INET6)
        addr->at.v6.sin6_port = htons(port);
    else
        addr->at.v4.sin_port = htons(port);
}

/* A scope is the name of an interface, which getaddrinfo knows how to look up. */
LK__PRIV bool lk__addr_parse_scoped(lk__addr *addr, const char *text, uint16_t port) {
    struct addrinfo hints = { .ai_flags = AI_NUMERICHOST, .ai_family = AF_INET6 }, *list;
    if (getaddrinfo(text, NULL, &hints, &list) != 0) return false;
    lk__addr_set(addr, list->ai_addr, sizeof(addr->at.v6), port);
    freeaddrinfo(list);
    return true;
}

LK__PRIV bool lk__addr_parse(lk__addr *addr, llmkit_str text, uint16_t port) {
    char copy[LK__MAX_HOST + 1];
    struct sockaddr_in v4 = { .sin_family = AF_INET };
    struct sockaddr_in6 v6 = { .sin6_family = AF_INET6 };
    if (text.len > LK__MAX_HOST || lk__str_find(text, '\0') < text.len) return false;
    lk__str_copy(copy, sizeof(copy), text);
    if (inet_pton(AF_INET, copy, &v4.sin_addr) == 1) {
        lk__addr_set(addr, &v4, sizeof(v4), port);
        return true;
    }
    if (inet_pton(AF_INET6, copy, &v6.sin6_addr) == 1) {
        lk__addr_set(addr, &v6, sizeof(v6), port);
        return true;
    }
    return strchr(copy, ':') && strchr(copy, '%') && lk__addr_parse_scoped(addr, copy, port);
}

/* The next entry whose family is, or is not, this one. */
LK__PRIV const struct addrinfo *lk__addrs_seek(const struct addrinfo *ai, int family, bool same) {
    for (; ai; ai = ai->ai_next) {
        bool usable = ai->ai_family == AF_INET || ai->ai_family == AF_INET6;
        if (usable && (ai->ai_family == family) == same) break;
    }
    return ai;
}

/* An /etc/hosts with several lines for a name makes glibc repeat itself. */
LK__PRIV void lk__addrs_add(lk__addrs *out, const struct addrinfo *ai, uint16_t port) {
    bool v6 = ai->ai_family == AF_INET6;
    lk__addr *addr = &out->addr[out->num];
    lk__addr_set(addr, ai->ai_addr, v6 ? sizeof(addr->at.v6) : sizeof(addr->at.v4), port);
    for (uint32_t i = 0; i < out->num; i++)
        if (memcmp(&out->addr[i], addr, sizeof(*addr)) == 0) return;
    out->num++;
}

/* RFC 8305 section 4: the family of the first address begins, then the families take turns, each in
 * the order of the list (which getaddrinfo has sorted by RFC 6724). */
LK__PRIV void lk__addrs_fill(lk__addrs *out, const struct addrinfo *list, uint16_t port) {
    const struct addrinfo *first = lk__addrs_seek(list, AF_UNSPEC, false);
    int family = first ? first->ai_family : AF_UNSPEC;
    const struct addrinfo *next[2] = { first, lk__addrs_seek(first, family, false) };
    out->num = 0;
    for (unsigned turn = 0; out->num < LK__MAX_ADDRS && (next[0] || next[1]); turn ^= 1) {
        const struct addrinfo *ai = next[turn];
        if (!ai) continue;
        lk__addrs_add(out, ai, port);
        next[turn] = lk__addrs_seek(ai->ai_next, family, turn == 0);
    }
}

/* The resolver. */

LK__PRIV void lk__job_free(lk__lookup_job *job) {
    lk__free(&job->resolver->env, job, sizeof(*job));
}

LK__PRIV void lk__job_resolve(lk__lookup_job *job) {
    /* Without AI_ADDRCONFIG: it drops ::1 and 127.0.0.1 on a host that has only these.  Where there
     * is no route for a family, connect says so at once, and the race goes on with the other. */
    struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM }, *list = NULL;
    job->code = job->getaddrinfo(job->host, NULL, &hints, &list);
    job->os_errno = errno;
    if (job->code != 0) return;
    lk__addrs_fill(&job->addrs, list, job->port);
    job->freeaddrinfo(list);
}

LK__PRIV void lk__resolver_unref(lk__resolver *r) { /* unlocks it, too */
    bool last = --r->refs == 0;
    lk__unlock(&r->mutex);
    if (!last) return;
    lk__mutex_free(&r->mutex);
    llmkit_env env = r->env;
    lk__free(&env, r, sizeof(*r));
}

LK__PRIV void lk__resolver_answer(lk__resolver *r, lk__lookup_job *job) {
    lk__lock(&r->mutex);
    if (!r->loop) {
        lk__job_free(job);
    } else {
        lk__queue_add(&r->answered, &job->task);
        if (!r->sent) lk__post_send(r->loop, &r->post);
        r->sent = true;
    }
    lk__unlock(&r->mutex);
}

LK__PRIV void lk__job_explain(const lk__lookup_job *job, llmkit_error *error) {
    llmkit_err err = job->code == EAI_MEMORY ? LLMKIT_E_NOMEM : LLMKIT_E_DNS;
    if (job->code == 0)
        lk__fail(error, err, "%s has neither an IPv4 nor an IPv6 address", job->host);
    else if (job->code == EAI_SYSTEM) /* the words for errno are those of E_IO */
        lk__fail_os(error, LLMKIT_E_IO, job->os_errno, "cannot resolve %s", job->host);
    else
        lk__fail_os(error, LLMKIT_E_DNS, job->code, "cannot resolve %s", job->host);
    error->code = err;
    error->os_errno = job->code;
    error->retryable = job->code != EAI_NONAME; /* a name that is misspelt stays so */
}

LK__PRIV void lk__job_deliver(lk__task *task) {
    lk__lookup_job *job = LK__CONTAINER(task, lk__lookup_job, task);
    lk__lookup *lookup = job->lookup;
    if (lookup) {
        llmkit_error error;
        lookup->job = NULL;
        if (job->addrs.num == 0) lk__job_explain(job, &error);
        lookup->fn(lookup, &job->addrs, job->addrs.num == 0 ? &error : NULL);
    }
    lk__job_free(job);
}

LK__PRIV void lk__resolver_mail(lk__post *post) {
    lk__resolver *r = LK__CONTAINER(post, lk__resolver, post);
    lk__lock(&r->mutex);
    r->sent = false;
    for (lk__task *task; (task = r->answered.first) != NULL;) {
        lk__queue_remove(&r->answered, task);
        lk__queue_add(&r->arrived, task);
    }
    lk__unlock(&r->mutex);
    lk__queue_run(&r->arrived);
}

LK__PRIV void lk__resolver_clear(lk__queue *q) {
    for (lk__task *task; (task = q->first) != NULL;) {
        lk__queue_remove(q, task);
        lk__job_free(LK__CONTAINER(task, lk__lookup_job, task));
    }
}

LK__PRIV void lk__resolver_close(lk__annex *annex) {
    lk__resolver *r = LK__CONTAINER(annex, lk__resolver, annex);
    lk__lock(&r->mutex);
    r->loop = NULL;
    lk__resolver_clear(&r->waiting);
    lk__resolver_clear(&r->answered);
    lk__resolver_unref(r);
}

LK__PRIV lk__resolver *lk__resolver_of(llmkit_loop *loop) {
    lk__annex **annex = lk__loop_annex(loop);
    if (*annex) return LK__CONTAINER(*annex, lk__resolver, annex);
    llmkit_env env = lk__env_fill(NULL);
    lk__resolver *r = lk__alloc(&env, sizeof(*r));
    if (!r) return NULL;
    r->env = env;
    r->loop = loop;
    r->refs = 1;
    r->annex.close = lk__resolver_close;
    r->post.fn = lk__resolver_mail;
    lk__queue_init(&r->arrived);
    lk__queue_init(&r->waiting);
    lk__queue_init(&r->answered);
    lk__mutex_init(&r->mutex);
    *annex = &r->annex;
    return r;
}

#if LLMKIT_WITH_THREADS

/* The next name to resolve; NULL: none is left, and r may be gone. */
LK__PRIV lk__lookup_job *lk__resolver_next(lk__resolver *r) {
    lk__lock(&r->mutex);
    for (lk__task *task; (task = r->waiting.first) != NULL;) {
        lk__lookup_job *job = LK__CONTAINER(task, lk__lookup_job, task);
        lk__queue_remove(&r->waiting, task);
        if (job->lookup) {
            lk__unlock(&r->mutex);
            return job;
        }
        lk__job_free(job); /* cancelled before its turn came */
    }
    r->threads--;
    lk__resolver_unref(r);
    return NULL;
}

LK__PRIV void *lk__resolver_work(void *arg) {
    lk__resolver *r = arg;
    for (lk__lookup_job *job; (job = lk__resolver_next(r)) != NULL;) {
        lk__job_resolve(job);
        lk__resolver_answer(r, job);
    }
    return NULL;
}

/* A thread ends when nothing waits, so all that are there are busy. */
LK__PRIV llmkit_err lk__resolver_ask(llmkit_loop *loop, lk__resolver *r, lk__lookup_job *job,
                                     llmkit_error *error) {
    lk__lock(&r->mutex);
    lk__queue_add(&r->waiting, &job->task);
    bool spawn = r->threads < LK__MAX_RESOLVING;
    r->threads += spawn;
    r->refs += spawn;
    lk__unlock(&r->mutex);
    int rc = spawn ? lk__loop_sys(loop)->thread(lk__resolver_work, r) : 0;
    if (rc == 0) return LLMKIT_OK;
    lk__lock(&r->mutex);
    bool others = --r->threads > 0; /* they will come to it */
    if (!others) lk__queue_remove(&r->waiting, &job->task);
    lk__resolver_unref(r);
    if (others) return LLMKIT_OK;
    lk__fail_os(error, LLMKIT_E_IO, rc, "cannot start a thread to resolve %s", job->host);
    lk__job_free(job);
    return LLMKIT_E_IO;
}

#else

LK__PRIV llmkit_err lk__resolver_ask(llmkit_loop *loop, lk__resolver *r, lk__lookup_job *job,
                                     llmkit_error *error) {
    (void)loop;
    (void)error;
    lk__job_resolve(job);
    lk__resolver_answer(r, job);
    return LLMKIT_OK;
}

#endif

LK__PRIV llmkit_err lk__lookup_start(llmkit_loop *loop, lk__lookup *lookup, llmkit_str host,
                                     uint16_t port, llmkit_error *error) {
    LK__ASSERT(lookup->fn && !lookup->job);
    if (host.len == 0 || host.len > LK__MAX_HOST || lk__str_find(host, '\0') < host.len)
        return lk__fail(error, LLMKIT_E_ARG, "\"%.*s\" is not a host name",
                        (int)(host.len > 64 ? 64 : host.len), host.ptr);
    lk__resolver *r = lk__resolver_of(loop);
    lk__lookup_job *job = r ? lk__alloc(&r->env, sizeof(*job)) : NULL;
    if (!job) return lk__fail(error, LLMKIT_E_NOMEM, "no memory to resolve %.*s", LK__ARG(host));
    job->task.fn = lk__job_deliver;
    job->resolver = r;
    job->lookup = lookup;
    job->port = port;
    job->getaddrinfo = lk__loop_sys(loop)->getaddrinfo;
    job->freeaddrinfo = lk__loop_sys(loop)->freeaddrinfo;
    lk__str_copy(job->host, sizeof(job->host), host);
    if (lk__addr_parse(&job->addrs.addr[0], host, port)) {
        job->addrs.num = 1;
        lk__resolver_answer(r, job);
    } else {
        llmkit_err err = lk__resolver_ask(loop, r, job, error);
        if (err) return err;
    }
    lookup->job = job; /* the answer comes in a turn of the loop, not before this */
    return LLMKIT_OK;
}

/* The job ends by itself, and finds nobody to tell. */
LK__PRIV void lk__lookup_cancel(llmkit_loop *loop, lk__lookup *lookup) {
    lk__lookup_job *job = lookup->job;
    (void)loop;
    if (!job) return;
    lk__lock(&job->resolver->mutex);
    job->lookup = NULL;
    lk__unlock(&job->resolver->mutex);
    lookup->job = NULL;
}
