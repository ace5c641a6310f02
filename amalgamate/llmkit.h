/* llmkit.h -- call language models from C.  One header over BearSSL, jsmn and POSIX.
 *
 * In one C11 file of your program:
 *
 *     #define LLMKIT_IMPLEMENTATION
 *     #include "llmkit.h"
 *
 * and in all others just the second line.  Link with -lbearssl.
 *
 * @toc
 *
 * MIT licence, see the end of this file.
 */
#include "api/config.h"

#ifndef LLMKIT_H
#define LLMKIT_H

#ifdef __cplusplus
extern "C" {
#endif

#include "api/base.h"
#include "api/json.h"
#include "api/loop.h"
#include "api/tls.h"
#include "api/limits.h"
#include "api/chat.h"
#include "api/client.h"
#include "api/batch.h"
#include "api/server.h"

#ifdef __cplusplus
}
#endif

#endif /* LLMKIT_H */

#if defined(LLMKIT_IMPLEMENTATION) && !defined(LLMKIT_IMPLEMENTED)
#define LLMKIT_IMPLEMENTED
/* @sum becomes LK__SOURCE_SUM, which llmkit_build_info() reports. */

#include "core/platform.h"
#include "core/atomic.h"
#include "core/mem.h"
#include "core/mem.c"
#include "core/str.h"
#include "core/str.c"
#include "core/error.h"
#include "core/error.c"
#include "core/rand.h"
#include "core/rand.c"
#include "core/json.h"
#include "core/json.c"
#include "core/sketch.h"
#include "core/sketch.c"
#include "policy/bucket.c"
#include "net/url.h"
#include "net/url.c"
#include "net/http1.h"
#include "net/http1.c"
#include "net/sse.h"
#include "net/sse.c"
#include "net/loop.h"
#include "net/loop_parts.h"
#include "net/loop_epoll.c"
#include "net/loop_kqueue.c"
#include "net/loop_poll.c"
#include "net/loop_guest.c"
#include "net/loop_timer.c"
#include "net/loop_sys.c"
#include "net/loop.c"
#include "net/dns.h"
#include "net/dns.c"
#include "net/tls.h"
#include "net/tls_trust.c"
#include "net/tls.c"
#include "net/wire.h"
#include "net/wire.c"
#include "net/dial.h"
#include "net/dial.c"
#include "net/fetch.h"
#include "net/fetch.c"
#include "llm/codec.h"
#include "llm/codec.c"
#include "llm/openai.c"
#include "llm/retry.h"
#include "llm/retry.c"
#include "llm/client.h"
#include "llm/client.c"
#include "llm/stream.c"
#include "llm/lines.h"
#include "llm/lines.c"
#include "llm/batch.c"
#include "srv/server.c"
#include "core/end.h"

#endif /* LLMKIT_IMPLEMENTATION */

/* MIT licence
 *
 * Copyright (c) 2026 the llmkit.h authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy
 * of this software and associated documentation files (the "Software"), to deal
 * in the Software without restriction, including without limitation the rights
 * to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
 * copies of the Software, and to permit persons to whom the Software is
 * furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all
 * copies or substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
 * IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
 * FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
 * AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
 * LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
 * SOFTWARE.
 */
