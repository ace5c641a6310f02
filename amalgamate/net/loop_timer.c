/* net/loop_timer.c -- the heap of timers */

#include "net/loop_parts.h"

LK__PRIV void lk__timers_put(lk__timers *h, uint32_t i, lk__timer_slot slot) {
    h->slots[i] = slot;
    slot.timer->place = i + 1;
}

LK__PRIV void lk__timers_up(lk__timers *h, uint32_t i, lk__timer_slot slot) {
    while (i > 0) {
        uint32_t parent = (i - 1) / 4;
        if (h->slots[parent].key_ns <= slot.key_ns) break;
        lk__timers_put(h, i, h->slots[parent]);
        i = parent;
    }
    lk__timers_put(h, i, slot);
}

LK__PRIV void lk__timers_down(lk__timers *h, uint32_t i, lk__timer_slot slot) {
    for (;;) {
        uint32_t child = 4 * i + 1, end = child + 4 < h->num ? child + 4 : h->num;
        if (child >= end) break;
        uint32_t least = child;
        while (++child < end)
            if (h->slots[child].key_ns < h->slots[least].key_ns) least = child;
        if (slot.key_ns <= h->slots[least].key_ns) break;
        lk__timers_put(h, i, h->slots[least]);
        i = least;
    }
    lk__timers_put(h, i, slot);
}

LK__PRIV bool lk__timers_grow(lk__timers *h) {
    if (h->num < h->cap) return true;
    if (h->cap > UINT32_MAX / 8) return false; /* so that 4 * i + 5 is in range */
    uint32_t cap = h->cap ? 2 * h->cap : 64;
    size_t size = sizeof(*h->slots);
    void *slots = lk__resize(h->env, h->slots, h->cap * size, lk__mul(cap, size));
    if (!slots) return false;
    h->slots = slots;
    h->cap = cap;
    return true;
}

/* A timer that moves to a later time stays where it is in the heap; lk__timers_first puts it right
 * when it comes to the top.  Idle deadlines move with each byte that arrives, and seldom fire. */
LK__PRIV llmkit_err lk__timers_set(lk__timers *h, lk__timer *timer, int64_t due_ns) {
    if (timer->place == 0 && !lk__timers_grow(h)) return LLMKIT_E_NOMEM;
    timer->due_ns = due_ns;
    if (timer->place != 0 && due_ns >= timer->key_ns) return LLMKIT_OK;
    uint32_t i = timer->place != 0 ? timer->place - 1 : h->num++;
    timer->key_ns = due_ns;
    lk__timers_up(h, i, (lk__timer_slot){ due_ns, timer });
    return LLMKIT_OK;
}

LK__PRIV void lk__timers_remove(lk__timers *h, lk__timer *timer) {
    if (timer->place == 0) return;
    uint32_t i = timer->place - 1;
    timer->place = 0;
    if (i == --h->num) return;
    lk__timer_slot last = h->slots[h->num];
    if (last.key_ns < timer->key_ns)
        lk__timers_up(h, i, last);
    else
        lk__timers_down(h, i, last);
}

LK__PRIV lk__timer *lk__timers_first(lk__timers *h) {
    while (h->num > 0) {
        lk__timer *timer = h->slots[0].timer;
        if (timer->key_ns == timer->due_ns) return timer;
        timer->key_ns = timer->due_ns;
        lk__timers_down(h, 0, (lk__timer_slot){ timer->key_ns, timer });
    }
    return NULL;
}

LK__PRIV void lk__timers_free(lk__timers *h) {
    lk__free(h->env, h->slots, h->cap * sizeof(*h->slots));
}
