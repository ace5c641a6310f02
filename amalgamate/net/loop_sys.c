/* net/loop_sys.c -- the socket calls, with the differences between systems evened out */

#include "net/loop_parts.h"

#ifdef MSG_NOSIGNAL
#define LK__SEND_FLAGS MSG_NOSIGNAL
#else
#define LK__SEND_FLAGS 0
#endif

/* For getaddrinfo: glibc takes 64 KB of stack and more, and musl's default is 128 KB. */
enum { LK__THREAD_STACK = 512 * 1024 };

/* accept4, pipe2 and SOCK_NONBLOCK would say this at once, but are hidden without _GNU_SOURCE or
 * absent in places; two more calls for each new connection do not show. */
LK__PRIV int lk__sys_prepare(int fd) {
    if (fd < 0) return fd;
    bool good = fcntl(fd, F_SETFL, O_NONBLOCK) == 0 && fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
#ifdef SO_NOSIGPIPE
    int on = 1; /* where there is no MSG_NOSIGNAL; refused by what is no socket, which needs none */
    (void)setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on));
#endif
    if (good) return fd;
    int os_errno = errno;
    close(fd);
    errno = os_errno;
    return -1;
}

LK__PRIV int lk__sys_socket(int domain, int type, int protocol) {
    return lk__sys_prepare(socket(domain, type, protocol));
}

/* An interrupted connect goes on by itself (POSIX), like one that would block. */
LK__PRIV int lk__sys_connect(int fd, const struct sockaddr *addr, socklen_t len) {
    int rc = connect(fd, addr, len);
    if (rc < 0 && errno == EINTR) errno = EINPROGRESS;
    return rc;
}

LK__PRIV int lk__sys_accept(int fd) {
    int peer;
    do {
        peer = accept(fd, NULL, NULL);
    } while (peer < 0 && errno == EINTR);
    return lk__sys_prepare(peer);
}

LK__PRIV ssize_t lk__sys_recv(int fd, void *buf, size_t len) {
    ssize_t n;
    do {
        n = recv(fd, buf, len, 0);
    } while (n < 0 && errno == EINTR);
    return n;
}

LK__PRIV ssize_t lk__sys_send(int fd, const struct iovec *iov, int count) {
    LK__ASSERT(count > 0 && count <= UINT8_MAX);
    struct msghdr msg = { .msg_iov = (struct iovec *)(uintptr_t)iov };
    msg.msg_iovlen = (uint8_t)count; /* a size_t here and an int there: this converts to both */
    ssize_t n;
    do {
        n = sendmsg(fd, &msg, LK__SEND_FLAGS);
    } while (n < 0 && errno == EINTR);
    return n;
}

/* Never tried again after EINTR: the number may belong to somebody else by then. */
LK__PRIV int lk__sys_close(int fd) {
    return close(fd);
}

#if LLMKIT_WITH_THREADS

/* Signals are for the program's own threads. */
LK__PRIV int lk__sys_thread(void *(*fn)(void *arg), void *arg) {
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, before;
    int rc = pthread_attr_init(&attr);
    if (rc != 0) return rc;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, LK__THREAD_STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&thread, &attr, fn, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return rc;
}

#else

LK__PRIV int lk__sys_thread(void *(*fn)(void *arg), void *arg) {
    (void)fn;
    (void)arg;
    return ENOSYS;
}

#endif

LK__PRIV const lk__sys *lk__sys_default(void) {
    static const lk__sys sys = {
        .socket = lk__sys_socket,
        .connect = lk__sys_connect,
        .accept = lk__sys_accept,
        .recv = lk__sys_recv,
        .send = lk__sys_send,
        .close = lk__sys_close,
        .getaddrinfo = getaddrinfo,
        .freeaddrinfo = freeaddrinfo,
        .thread = lk__sys_thread,
    };
    return &sys;
}

LK__PRIV int lk__socket_open(llmkit_loop *loop, int family) {
    return lk__loop_sys(loop)->socket(family, SOCK_STREAM, 0);
}

#undef LK__SEND_FLAGS
