/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Connections at rest that leave, and those that come back because they cannot.
 */
#include "ngx_http_tcpmig.h"

/* Between attempts, if one is kept. */
#define FIRST_DELAY 100u
#define LONGEST_DELAY 10000u

/* A connection that was given, in the pool of that. */
typedef struct {
    ngx_connection_t *c;
    ngx_msec_t rest;
    ngx_msec_t delay; /* Between attempts, if it was kept. */
    ngx_msec_t not_before;
    unsigned idle : 1;
} gift_t;

static void forgotten(void *data)
{
    (void)data;
}

/* What is noted of a connection that is or was given: its cleanup does nothing, but can be found. */
static gift_t *gift_of(ngx_connection_t *c)
{
    ngx_pool_cleanup_t *cleanup;

    for (cleanup = c->pool->cleanup; cleanup != NULL; cleanup = cleanup->next)
        if (cleanup->handler == forgotten)
            return cleanup->data;
    return NULL;
}

static gift_t *new_gift(ngx_connection_t *c)
{
    ngx_pool_cleanup_t *cleanup = ngx_pool_cleanup_add(c->pool, sizeof(gift_t));
    gift_t *gift;

    if (cleanup == NULL)
        return NULL;
    cleanup->handler = forgotten;
    gift = cleanup->data;
    ngx_memzero(gift, sizeof(*gift));
    gift->c = c;
    return gift;
}

ngx_int_t ngx_http_tcpmig_is_too_soon(ngx_connection_t *c)
{
    gift_t *gift = gift_of(c);

    return gift != NULL && gift->delay > 0 && (ngx_msec_int_t)(ngx_current_msec - gift->not_before) < 0;
}

static ngx_msec_t rest_of(ngx_connection_t *c)
{
    ngx_msec_int_t rest = c->read->timer_set ? (ngx_msec_int_t)(c->read->timer.key - ngx_current_msec) : 0;

    return ngx_max(rest, (ngx_msec_int_t)NGX_HTTP_TCPMIG_SHORTEST_REST);
}

static void put(u_char *at, uint64_t number, size_t bytes)
{
    while (bytes > 0) {
        at[--bytes] = (u_char)number;
        number >>= 8;
    }
}

/* Takes it out of nginx's events, timers and queues. It stays one of nginx's connections, without a descriptor, so that there is a place
 * for it if it comes back. */
static void suspend(gift_t *gift)
{
    ngx_connection_t *c = gift->c;

    gift->idle = c->idle;
    if (c->read->timer_set)
        ngx_del_timer(c->read);
    if (c->write->timer_set)
        ngx_del_timer(c->write);
    if (c->read->posted) {
        ngx_delete_posted_event(c->read);
    }
    if (c->write->posted) {
        ngx_delete_posted_event(c->write);
    }
    ngx_reusable_connection(c, 0);
    c->idle = 0;
    c->fd = (ngx_socket_t)-1;
}

static void resume(gift_t *gift, int fd)
{
    ngx_connection_t *c = gift->c;

    c->fd = fd;
    c->idle = gift->idle;
    c->read->ready = 0;
    c->write->ready = 1;
    ngx_reusable_connection(c, 1);
    ngx_add_timer(c->read, gift->rest);
    /* What has arrived meanwhile is an event of the next turn. */
    if (ngx_handle_read_event(c->read, 0) != NGX_OK)
        ngx_http_close_connection(c);
}

ngx_int_t ngx_http_tcpmig_give(ngx_http_tcpmig_link_t *link, ngx_connection_t *c, const char *host)
{
    struct tcpmig_session session = TCPMIG_SESSION_INIT;
    struct tcpmig_layer layer = TCPMIG_LAYER_INIT;
    gift_t *gift = gift_of(c);
    u_char payload[NGX_HTTP_TCPMIG_LENGTH];
    int fd = c->fd;

    if (gift == NULL)
        gift = new_gift(c);
    if (gift == NULL)
        return NGX_ERROR;
    gift->rest = rest_of(c);
    put(payload, c->listening->sockaddr->sa_family == AF_INET6 ? 6 : 4, 4);
    put(payload + 4, c->requests, 4);
    put(payload + 8, ngx_current_msec - c->start_time, 8);
    put(payload + 16, gift->rest, 8);
    layer.kind = NGX_HTTP_TCPMIG_KIND;
    layer.version = NGX_HTTP_TCPMIG_VERSION;
    layer.payload = payload;
    layer.payload_length = sizeof(payload);
    session.layers = &layer;
    session.layer_count = 1;
    /* While it has its descriptor. */
    if (ngx_del_conn(c, 0) != NGX_OK)
        return NGX_ERROR;
    suspend(gift);
    if (tcpmig_agent_give(link->agent, fd, (const char *)link->service->name.data, host, &session, (uint64_t)(uintptr_t)gift) ==
        TCPMIG_OK)
        return NGX_OK;
    ngx_log_error(NGX_LOG_WARN, c->log, 0, "tcpmig_service \"%V\": tcpmig_agent_give(): %s", &link->service->name, tcpmig_last_error());
    ngx_http_tcpmig_kept((uint64_t)(uintptr_t)gift, fd);
    return NGX_ERROR;
}

static gift_t *gift_by(uint64_t id)
{
    return (gift_t *)(uintptr_t)id;
}

ngx_connection_t *ngx_http_tcpmig_given(uint64_t id)
{
    return gift_by(id)->c;
}

void ngx_http_tcpmig_kept(uint64_t id, int fd)
{
    gift_t *gift = gift_by(id);

    gift->delay = gift->delay == 0 ? FIRST_DELAY : ngx_min(2 * gift->delay, LONGEST_DELAY);
    gift->not_before = ngx_current_msec + gift->delay;
    resume(gift, fd);
}

/* As nginx ends a connection, but that it has no descriptor any more. */
static void release(ngx_connection_t *c)
{
    ngx_pool_t *pool = c->pool;

#if (NGX_STAT_STUB)
    (void)ngx_atomic_fetch_add(ngx_stat_active, -1);
#endif
    c->destroyed = 1;
    c->read->closed = 1;
    c->write->closed = 1;
    ngx_free_connection(c);
    ngx_destroy_pool(pool);
}

void ngx_http_tcpmig_forget(uint64_t id)
{
    release(gift_by(id)->c);
}
