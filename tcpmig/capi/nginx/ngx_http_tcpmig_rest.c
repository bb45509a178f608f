/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Which connections of nginx are at rest: between two requests of HTTP/1, or before the first.
 */
#include "ngx_http_tcpmig.h"

/* Which handler nginx has for connections that have had no request; it has no name outside of nginx. */
static ngx_event_handler_pt waits_for_request;

/* The handler of listening sockets: nginx's own, and a look at what it makes of a new connection. */
static void see_connection(ngx_connection_t *c)
{
    ngx_http_connection_t *http;

    ngx_http_init_connection(c);
    if (waits_for_request != NULL || c->destroyed || !c->reusable)
        return;
    http = c->data;
    if (!http->addr_conf->ssl && !http->addr_conf->http2)
        waits_for_request = c->read->handler;
}

void ngx_http_tcpmig_wrap_listening(ngx_cycle_t *cycle)
{
    ngx_listening_t *listening = cycle->listening.elts;
    ngx_uint_t i;

    for (i = 0; i < cycle->listening.nelts; i++)
        if (listening[i].handler == ngx_http_init_connection)
            listening[i].handler = see_connection;
}

static ngx_http_addr_conf_t *among_v4(ngx_http_port_t *port, struct sockaddr *local)
{
    ngx_http_in_addr_t *addresses = port->addrs;
    ngx_uint_t i;

    /* The last one is that of all others. */
    for (i = 0; i + 1 < port->naddrs; i++)
        if (addresses[i].addr == ((struct sockaddr_in *)local)->sin_addr.s_addr)
            break;
    return &addresses[i].conf;
}

static ngx_http_addr_conf_t *among_v6(ngx_http_port_t *port, struct sockaddr *local)
{
    ngx_http_in6_addr_t *addresses = port->addrs;
    ngx_uint_t i;

    for (i = 0; i + 1 < port->naddrs; i++)
        if (memcmp(&addresses[i].addr6, &((struct sockaddr_in6 *)local)->sin6_addr, sizeof(struct in6_addr)) == 0)
            break;
    return &addresses[i].conf;
}

ngx_http_addr_conf_t *ngx_http_tcpmig_conf_of(ngx_http_tcpmig_link_t *link, ngx_listening_t *listening, struct sockaddr *local)
{
    ngx_http_tcpmig_srv_conf_t *server;
    ngx_http_addr_conf_t *conf;

    if (listening->handler != see_connection || listening->sockaddr->sa_family != local->sa_family)
        return NULL;
    if (local->sa_family == AF_INET)
        conf = among_v4(listening->servers, local);
    else if (local->sa_family == AF_INET6)
        conf = among_v6(listening->servers, local);
    else
        return NULL;
    server = conf->default_server->ctx->srv_conf[ngx_http_tcpmig_module.ctx_index];
    if (server->service != link->service || conf->ssl || conf->http2 || conf->proxy_protocol)
        return NULL;
    return conf;
}

static ngx_http_addr_conf_t *conf_of_connection(ngx_http_tcpmig_link_t *link, ngx_connection_t *c)
{
    if (c->fd == (ngx_socket_t)-1 || c->listening == NULL || c->listening->handler != see_connection || c->read->accept)
        return NULL;
    if (((ngx_http_port_t *)c->listening->servers)->naddrs > 1 && ngx_connection_local_sockaddr(c, NULL, 0) != NGX_OK)
        return NULL;
    return ngx_http_tcpmig_conf_of(link, c->listening, c->local_sockaddr);
}

/* nginx says of a connection whether it can be done without: it can at rest, and while it is closed or in a handshake. At rest its data is
 * an ngx_http_connection_t, which begins with the address's configuration; in all other cases it is something else. */
static ngx_int_t is_at_rest(ngx_http_tcpmig_link_t *link, ngx_connection_t *c)
{
    ngx_http_addr_conf_t *conf;

    if (!c->reusable || !c->read->active || c->close || c->ssl != NULL || c->proxy_protocol != NULL || c->buffered)
        return 0;
    if (!c->idle && (waits_for_request == NULL || c->read->handler != waits_for_request))
        return 0;
    conf = conf_of_connection(link, c);
    if (conf == NULL || *(ngx_http_addr_conf_t **)c->data != conf)
        return 0;
    return c->buffer == NULL || c->buffer->pos == NULL || c->buffer->start == NULL || c->buffer->pos == c->buffer->last;
}

void ngx_http_tcpmig_each_at_rest(ngx_http_tcpmig_link_t *link, ngx_http_tcpmig_found_pt found)
{
    ngx_queue_t *queue = &((ngx_cycle_t *)ngx_cycle)->reusable_connections_queue, *at, *next;

    for (at = ngx_queue_head(queue); at != ngx_queue_sentinel(queue); at = next) {
        ngx_connection_t *c = ngx_queue_data(at, ngx_connection_t, queue);

        /* It leaves the queue when it is given. */
        next = ngx_queue_next(at);
        if (is_at_rest(link, c) && found(link, c) != NGX_OK)
            return;
    }
}

ngx_uint_t ngx_http_tcpmig_count(ngx_http_tcpmig_link_t *link)
{
    ngx_connection_t *connections = ngx_cycle->connections;
    ngx_uint_t i, count = 0;

    for (i = 0; i < ngx_cycle->connection_n; i++)
        count += conf_of_connection(link, &connections[i]) != NULL;
    return count;
}

ngx_int_t ngx_http_tcpmig_has(ngx_http_tcpmig_link_t *link, const struct tcpmig_flow *flow)
{
    ngx_connection_t *connections = ngx_cycle->connections;
    struct tcpmig_flow found;
    ngx_uint_t i;

    for (i = 0; i < ngx_cycle->connection_n; i++)
        if (conf_of_connection(link, &connections[i]) != NULL && tcpmig_flow_of(connections[i].fd, &found) == TCPMIG_OK &&
            memcmp(&found, flow, sizeof(found)) == 0)
            return 1;
    return 0;
}
