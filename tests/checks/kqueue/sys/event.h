/* sys/event.h -- the declarations of kqueue, so that its backend can be compiled on other systems
 *
 * As on FreeBSD.  For the compiler only: nothing defines these functions. */
#pragma once

#include <stdint.h>
#include <time.h>

#define EVFILT_READ  (-1)
#define EVFILT_WRITE (-2)

#define EV_ADD    0x0001
#define EV_DELETE 0x0002
#define EV_ERROR  0x4000
#define EV_EOF    0x8000

struct kevent {
    uintptr_t      ident;
    short          filter;
    unsigned short flags;
    unsigned int   fflags;
    int64_t        data;
    void          *udata;
    uint64_t       ext[4];
};

#define EV_SET(e, ident_, filter_, flags_, fflags_, data_, udata_)                                 \
    (*(e) = (struct kevent){ .ident = (ident_), .filter = (filter_), .flags = (flags_),            \
                             .fflags = (fflags_), .data = (data_), .udata = (udata_) })

int kqueue(void);
int kevent(int kq, const struct kevent *changes, int num_changes, struct kevent *events,
           int num_events, const struct timespec *timeout);
