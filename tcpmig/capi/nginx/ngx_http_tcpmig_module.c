/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * The directives, and the beginning and end of a worker.
 */
#include "ngx_http_tcpmig.h"

#include <sys/un.h>

static ngx_http_tcpmig_link_t *links; /* Of this worker, one for each service. */
static ngx_uint_t link_count;

static void *create_main_conf(ngx_conf_t *cf)
{
    ngx_http_tcpmig_main_conf_t *conf = ngx_pcalloc(cf->pool, sizeof(*conf));

    if (conf == NULL || ngx_array_init(&conf->services, cf->pool, 1, sizeof(ngx_http_tcpmig_service_t)) != NGX_OK)
        return NULL;
    return conf;
}

static void *create_srv_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_http_tcpmig_srv_conf_t));
}

static char *merge_srv_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_tcpmig_srv_conf_t *above = parent, *conf = child;

    (void)cf;
    ngx_conf_merge_str_value(conf->name, above->name, "");
    return NGX_CONF_OK;
}

static char *set_agent(ngx_conf_t *cf, ngx_command_t *command, void *conf)
{
    ngx_http_tcpmig_main_conf_t *main_conf = conf;
    ngx_str_t *words = cf->args->elts;
    size_t most = sizeof(((struct sockaddr_un *)0)->sun_path) - 1;

    (void)command;
    if (main_conf->agent.data != NULL)
        return "is duplicate";
    if (words[1].len == 0)
        return "has an empty path";
    main_conf->agent = words[1];
    if (ngx_conf_full_name(cf->cycle, &main_conf->agent, 0) != NGX_OK)
        return NGX_CONF_ERROR;
    if (main_conf->agent.len > most) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "tcpmig_agent \"%V\": the path of a socket has at most %uz bytes", &main_conf->agent,
                           most);
        return NGX_CONF_ERROR;
    }
    return NGX_CONF_OK;
}

static char *set_service(ngx_conf_t *cf, ngx_command_t *command, void *conf)
{
    ngx_http_tcpmig_srv_conf_t *srv_conf = conf;
    ngx_str_t *words = cf->args->elts;

    (void)command;
    if (srv_conf->name.data != NULL)
        return "is duplicate";
    if (words[1].len == 0)
        return "has an empty name";
    srv_conf->name = words[1];
    if (ngx_strcmp(words[1].data, "off") == 0)
        srv_conf->name.len = 0;
    return NGX_CONF_OK;
}

static ngx_command_t commands[] = {
    { ngx_string("tcpmig_agent"), NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1, set_agent, NGX_HTTP_MAIN_CONF_OFFSET, 0, NULL },
    { ngx_string("tcpmig_service"), NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_CONF_TAKE1, set_service, NGX_HTTP_SRV_CONF_OFFSET, 0,
      NULL },
    ngx_null_command,
};

static ngx_http_tcpmig_srv_conf_t *conf_of(ngx_http_core_srv_conf_t *server)
{
    return server->ctx->srv_conf[ngx_http_tcpmig_module.ctx_index];
}

static ngx_int_t same(const ngx_str_t *a, const ngx_str_t *b)
{
    return a->len == b->len && ngx_strncmp(a->data, b->data, a->len) == 0;
}

static ngx_http_tcpmig_service_t *service_named(ngx_conf_t *cf, ngx_http_tcpmig_main_conf_t *conf, ngx_str_t *name)
{
    ngx_http_tcpmig_service_t *service = conf->services.elts;
    ngx_uint_t i;

    for (i = 0; i < conf->services.nelts; i++)
        if (same(&service[i].name, name))
            return &service[i];
    service = ngx_array_push(&conf->services);
    if (service == NULL || ngx_array_init(&service->addresses, cf->pool, 2, sizeof(char *)) != NGX_OK)
        return NULL;
    service->name = *name;
    return service;
}

/* What keeps the connections of an address here. */
static const char *obstacle(const ngx_http_conf_addr_t *address)
{
    if (address->opt.sockaddr->sa_family == AF_UNIX)
        return "a unix socket";
    if (address->opt.ssl)
        return "ssl";
    if (address->opt.http2)
        return "http2";
    return address->opt.proxy_protocol ? "proxy_protocol" : NULL;
}

/* Connections at rest belong to an address, not to one of its servers: they all say the same of it. */
static ngx_int_t agree(ngx_conf_t *cf, const ngx_http_conf_addr_t *address)
{
    ngx_http_core_srv_conf_t **servers = address->servers.elts;
    ngx_str_t *name = &conf_of(address->default_server)->name;
    ngx_uint_t i;

    for (i = 0; i < address->servers.nelts; i++) {
        if (same(&conf_of(servers[i])->name, name))
            continue;
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "server \"%V\" and the default server of %V have different tcpmig_service: \"%V\" and \"%V\"",
                           &servers[i]->server_name, &address->opt.addr_text, &conf_of(servers[i])->name, name);
        return NGX_ERROR;
    }
    return NGX_OK;
}

/* The services of an address whose connections stay are there all the same, so that one without any other address is found out. */
static ngx_int_t pass_over(ngx_conf_t *cf, ngx_http_tcpmig_main_conf_t *conf, const ngx_http_conf_addr_t *address)
{
    ngx_http_core_srv_conf_t **servers = address->servers.elts;
    ngx_uint_t i;

    for (i = 0; i < address->servers.nelts; i++) {
        ngx_str_t *name = &conf_of(servers[i])->name;

        if (name->len == 0)
            continue;
        if (service_named(cf, conf, name) == NULL)
            return NGX_ERROR;
        ngx_conf_log_error(NGX_LOG_INFO, cf, 0, "tcpmig_service \"%V\": connections to %V stay (%s)", name, &address->opt.addr_text,
                           obstacle(address));
    }
    return NGX_OK;
}

static ngx_int_t add_address(ngx_conf_t *cf, ngx_http_tcpmig_main_conf_t *conf, ngx_http_conf_addr_t *address)
{
    ngx_str_t *name = &conf_of(address->default_server)->name;
    ngx_http_tcpmig_service_t *service;
    char **text;
    size_t length;

    if (obstacle(address) != NULL)
        return pass_over(cf, conf, address);
    if (agree(cf, address) != NGX_OK)
        return NGX_ERROR;
    if (name->len == 0)
        return NGX_OK;
    service = service_named(cf, conf, name);
    text = service != NULL ? ngx_array_push(&service->addresses) : NULL;
    if (text == NULL)
        return NGX_ERROR;
    *text = ngx_pnalloc(cf->pool, NGX_SOCKADDR_STRLEN + 1);
    if (*text == NULL)
        return NGX_ERROR;
    length = ngx_sock_ntop(address->opt.sockaddr, address->opt.socklen, (u_char *)*text, NGX_SOCKADDR_STRLEN, 1);
    (*text)[length] = '\0';
    return NGX_OK;
}

/* The services and their addresses, from what the servers listen on. */
static ngx_int_t postconfiguration(ngx_conf_t *cf)
{
    ngx_http_core_main_conf_t *core = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);
    ngx_http_tcpmig_main_conf_t *conf = ngx_http_conf_get_module_main_conf(cf, ngx_http_tcpmig_module);
    ngx_http_conf_port_t *ports = core->ports != NULL ? core->ports->elts : NULL;
    ngx_http_core_srv_conf_t **servers = core->servers.elts;
    ngx_http_tcpmig_service_t *services;
    ngx_uint_t i, j;

    for (i = 0; ports != NULL && i < core->ports->nelts; i++)
        for (j = 0; j < ports[i].addrs.nelts; j++)
            if (add_address(cf, conf, (ngx_http_conf_addr_t *)ports[i].addrs.elts + j) != NGX_OK)
                return NGX_ERROR;
    services = conf->services.elts;
    for (i = 0; i < conf->services.nelts; i++)
        if (services[i].addresses.nelts == 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "tcpmig_service \"%V\" has no address whose connections can move: those of ssl, http2, proxy_protocol and "
                               "unix sockets stay",
                               &services[i].name);
            return NGX_ERROR;
        }
    /* The array does not grow any more. */
    for (i = 0; i < core->servers.nelts; i++)
        if (conf_of(servers[i])->name.len > 0)
            conf_of(servers[i])->service = service_named(cf, conf, &conf_of(servers[i])->name);
    if (conf->services.nelts == 0 && conf->agent.data != NULL)
        ngx_conf_log_error(NGX_LOG_WARN, cf, 0, "tcpmig_agent is of no use: no server has a tcpmig_service");
    if (conf->agent.data == NULL) {
        ngx_str_set(&conf->agent, TCPMIG_AGENT_SOCKET);
    }
    return NGX_OK;
}

static ngx_http_tcpmig_main_conf_t *main_conf_of(ngx_cycle_t *cycle)
{
    return ngx_http_cycle_get_module_main_conf(cycle, ngx_http_tcpmig_module);
}

/* When all of the configuration is known, that of events as well. */
static ngx_int_t init_module(ngx_cycle_t *cycle)
{
    ngx_http_tcpmig_main_conf_t *conf = main_conf_of(cycle);
    ngx_event_conf_t *events = ngx_event_get_conf(cycle->conf_ctx, ngx_event_core_module);

    if (conf == NULL || conf->services.nelts == 0 || ngx_strcmp(events->name, "epoll") == 0)
        return NGX_OK;
    ngx_log_error(NGX_LOG_EMERG, cycle->log, 0, "tcpmig_service needs \"use epoll\", and events have \"use %s\"", events->name);
    return NGX_ERROR;
}

static ngx_int_t init_process(ngx_cycle_t *cycle)
{
    ngx_http_tcpmig_main_conf_t *conf = main_conf_of(cycle);
    ngx_http_tcpmig_service_t *services;
    ngx_uint_t i;

    if (conf == NULL || conf->services.nelts == 0)
        return NGX_OK;
    /* Without a master a new configuration takes the place of the old one in the midst of its connections. */
    if (ngx_process == NGX_PROCESS_SINGLE)
        ngx_log_error(NGX_LOG_WARN, cycle->log, 0, "tcpmig_service is of no effect with \"master_process off\"");
    /* Others look after caches. */
    if (ngx_process != NGX_PROCESS_WORKER)
        return NGX_OK;
    services = conf->services.elts;
    links = ngx_pcalloc(cycle->pool, conf->services.nelts * sizeof(*links));
    if (links == NULL)
        return NGX_ERROR;
    link_count = conf->services.nelts;
    ngx_http_tcpmig_wrap_listening(cycle);
    for (i = 0; i < link_count; i++)
        ngx_http_tcpmig_link_begin(&links[i], &services[i], (char *)conf->agent.data);
    return NGX_OK;
}

static void exit_process(ngx_cycle_t *cycle)
{
    ngx_uint_t i;

    (void)cycle;
    for (i = 0; i < link_count; i++)
        ngx_http_tcpmig_link_end(&links[i]);
}

static ngx_http_module_t context = {
    NULL, postconfiguration, create_main_conf, NULL, create_srv_conf, merge_srv_conf, NULL, NULL,
};

ngx_module_t ngx_http_tcpmig_module = {
    NGX_MODULE_V1, &context,     commands, NGX_HTTP_MODULE, NULL,         init_module,
    init_process,  NULL,         NULL,     exit_process,    NULL,         NGX_MODULE_V1_PADDING,
};
