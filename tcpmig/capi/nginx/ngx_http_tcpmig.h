/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * What the files of the module share.
 *
 * - ngx_http_tcpmig_module.c: the directives, and the beginning and end of a worker.
 * - ngx_http_tcpmig_link.c: the link of a worker to the agent for one service: events, drains.
 * - ngx_http_tcpmig_connecting.c: how such a link comes about without holding the worker up.
 * - ngx_http_tcpmig_rest.c: which connections are at rest.
 * - ngx_http_tcpmig_leaving.c, ngx_http_tcpmig_arriving.c: how they leave, come back and arrive.
 *
 * All that there is to a connection at rest beside its socket is in the layer "org.tcpmig.nginx", version 1, whose numbers are big endian:
 *
 *     32 bits  the family of its socket: 4 or 6
 *     32 bits  how many requests it has had
 *     64 bits  its age in milliseconds
 *     64 bits  how many milliseconds it may still rest
 */
#ifndef NGX_HTTP_TCPMIG_H
#define NGX_HTTP_TCPMIG_H

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>

#include <tcpmig.h>

#if (nginx_version >= 1025000)
#error "from nginx 1.25 on, HTTP/2 and QUIC are on listening sockets in ways that this module does not know"
#endif

#define NGX_HTTP_TCPMIG_KIND "org.tcpmig.nginx"
#define NGX_HTTP_TCPMIG_VERSION 1u
#define NGX_HTTP_TCPMIG_LENGTH 24u

/* What comes, or comes back, may have been in its last moment. */
#define NGX_HTTP_TCPMIG_SHORTEST_REST 1000u

/* A service of the configuration. */
typedef struct {
    ngx_str_t name;
    ngx_array_t addresses; /* Of char *: "10.0.0.1:80", as tcpmig_agent_register() wants them. */
} ngx_http_tcpmig_service_t;

typedef struct {
    ngx_str_t agent;      /* The path of its socket. */
    ngx_array_t services; /* Of ngx_http_tcpmig_service_t. */
} ngx_http_tcpmig_main_conf_t;

typedef struct {
    ngx_str_t name; /* Empty: none. */
    ngx_http_tcpmig_service_t *service;
} ngx_http_tcpmig_srv_conf_t;

typedef struct ngx_http_tcpmig_attempt_s ngx_http_tcpmig_attempt_t;

/* The link of this worker to the agent, for one service. */
typedef struct {
    ngx_http_tcpmig_service_t *service;
    char *path; /* Of the agent's socket. */

    struct tcpmig_agent *agent;  /* NULL until there was one. */
    ngx_connection_t *connection; /* Of its descriptor. */

    ngx_http_tcpmig_attempt_t *attempt; /* To connect; NULL if none is under way. */
    ngx_connection_t *attempted;        /* Of the descriptor that tells its end. */
    ngx_event_t again;                  /* The next attempt. */
    ngx_msec_t pause;                   /* Before it. */

    ngx_uint_t away;  /* Connections that were given and have no answer. */
    ngx_uint_t taken; /* Those that were taken and are not here. */
    ngx_event_t hold; /* Keeps a worker that ends alive while there are some. */

    ngx_uint_t drains; /* Whether the service is to be empty. */
    uint64_t drain;
    char **hosts; /* That connections go to, in turn. */
    ngx_uint_t host_count;
    ngx_uint_t next_host;
    uint64_t said_left;
    ngx_msec_t complained; /* When it was last said aloud that a connection does not move. */

    ngx_queue_t wanted; /* Single connections that are to move. */
    ngx_event_t look;   /* Looks for connections at rest. */

    unsigned ends : 1; /* The worker does. */
} ngx_http_tcpmig_link_t;

extern ngx_module_t ngx_http_tcpmig_module;

/* Begins to connect. */
void ngx_http_tcpmig_link_begin(ngx_http_tcpmig_link_t *link, ngx_http_tcpmig_service_t *service, char *path);

/* Ends it at once: what has no answer is lost. */
void ngx_http_tcpmig_link_end(ngx_http_tcpmig_link_t *link);

/* Connects and registers on a thread of its own, and calls ngx_http_tcpmig_link_connected() or, after a pause, tries again. */
void ngx_http_tcpmig_connect(ngx_http_tcpmig_link_t *link);
void ngx_http_tcpmig_link_connected(ngx_http_tcpmig_link_t *link, struct tcpmig_agent *agent);

/* There is no further attempt; one that is under way comes to nothing. With the process, at its end, it is not waited for. */
void ngx_http_tcpmig_connect_end(ngx_http_tcpmig_link_t *link);
void ngx_http_tcpmig_connect_abandon(ngx_http_tcpmig_link_t *link);

/* nginx's connection for a descriptor that is not nginx's to close; NULL if there is none left. */
ngx_connection_t *ngx_http_tcpmig_watch(int fd, ngx_event_handler_pt handler, void *data);
void ngx_http_tcpmig_unwatch(ngx_connection_t *c);

/* Lets it see what connections without a request are like. */
void ngx_http_tcpmig_wrap_listening(ngx_cycle_t *cycle);

/* What nginx has for connections that this socket accepts to this address, if they are of the service and can move; else NULL. */
ngx_http_addr_conf_t *ngx_http_tcpmig_conf_of(ngx_http_tcpmig_link_t *link, ngx_listening_t *listening, struct sockaddr *local);

/* Calls back for each connection of the service that is at rest, until that says something else than NGX_OK. */
typedef ngx_int_t (*ngx_http_tcpmig_found_pt)(ngx_http_tcpmig_link_t *link, ngx_connection_t *c);
void ngx_http_tcpmig_each_at_rest(ngx_http_tcpmig_link_t *link, ngx_http_tcpmig_found_pt found);

/* How many connections of the service this worker has, at rest or not. */
ngx_uint_t ngx_http_tcpmig_count(ngx_http_tcpmig_link_t *link);

/* Whether this worker has the connection, at rest or not: another one may. */
ngx_int_t ngx_http_tcpmig_has(ngx_http_tcpmig_link_t *link, const struct tcpmig_flow *flow);

/* Whether it was kept here a moment ago, so that it is too soon to try again. */
ngx_int_t ngx_http_tcpmig_is_too_soon(ngx_connection_t *c);

/* Gives a connection at rest away. */
ngx_int_t ngx_http_tcpmig_give(ngx_http_tcpmig_link_t *link, ngx_connection_t *c, const char *host);

/* The answers: the connection of this id is nginx's again under this descriptor, or is not here any more. */
ngx_connection_t *ngx_http_tcpmig_given(uint64_t id);
void ngx_http_tcpmig_kept(uint64_t id, int fd);
void ngx_http_tcpmig_forget(uint64_t id);

/* Why an offer cannot be taken; NULL if it can. */
const char *ngx_http_tcpmig_objection(ngx_http_tcpmig_link_t *link, const struct tcpmig_event *event);

/* Makes a connection of nginx of one that arrives. */
void ngx_http_tcpmig_adopt(ngx_http_tcpmig_link_t *link, const struct tcpmig_event *event);

#endif
