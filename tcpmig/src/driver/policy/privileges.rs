//! Options that a process without privileges could not set itself.

use tcpmig_format::{Image, IpImage, SocketOptions, TcpImage, TcpParts};

use super::{Denied, Facts, Rules};
use crate::options::NotSet;
use crate::restore::INJECT_MARK;

/// The largest priority that needs no privilege (`sk_setsockopt` in the kernel).
const FREE_PRIORITY: u32 = 6;

/// In `SO_BUF_LOCK`: the application set the size.
const SEND: u8 = 1;
const RECEIVE: u8 = 2;

/// A queue can have more bytes than its buffer's limit says: the kernel looks at the limit before it
/// takes the next packet, which may be a large one.
const SLACK: u64 = 1 << 20;

/// Options that are not allowed end the check, or are taken out of the image.
struct Strict {
    leave_out: bool,
    left_out: Vec<NotSet>,
}

impl Strict {
    /// An option that is set is allowed, or goes.
    fn option<T>(
        &mut self,
        option: &mut Option<T>,
        allowed: impl FnOnce(&T) -> Result<bool, Denied>,
        denied: impl FnOnce(&T) -> Denied,
    ) -> Result<(), Denied> {
        let Some(value) = &*option else {
            return Ok(());
        };
        if allowed(value)? {
            return Ok(());
        }
        let denied = denied(value);
        self.leave_out(denied)?;
        *option = None;
        Ok(())
    }

    fn flag(
        &mut self,
        flag: &mut bool,
        allowed: bool,
        rule: &'static str,
        option: &'static str,
    ) -> Result<(), Denied> {
        if *flag && !allowed {
            let value = "1".to_owned();
            self.leave_out(Denied::Option {
                rule,
                option,
                value,
            })?;
            *flag = false;
        }
        Ok(())
    }

    fn leave_out(&mut self, denied: Denied) -> Result<(), Denied> {
        if !self.leave_out {
            return Err(denied);
        }
        self.left_out.push(match denied {
            Denied::Option { option, value, .. } => NotSet::not_permitted(option, value),
            Denied::Missing(not_set) => not_set,
            other => return Err(other),
        });
        Ok(())
    }
}

pub(super) fn check(
    rules: &Rules,
    image: &mut Image,
    host: &dyn Facts,
    leave_out: bool,
) -> Result<Vec<NotSet>, Denied> {
    let mut strict = Strict {
        leave_out,
        left_out: Vec::new(),
    };
    let Some(connection) = image.connection_mut() else {
        return Ok(strict.left_out);
    };
    if let Some(ip) = &mut connection.ip {
        of_packets(rules, ip, &mut strict)?;
    }
    if let Some(tcp) = connection.tcp.take() {
        let mut parts = tcp.into_parts();
        queues(rules, &parts, host)?;
        of_socket(rules, &mut parts.socket, host, &mut strict)?;
        // INVARIANT: options were taken out, of which none is needed by another one.
        let whole = TcpImage::new(parts).map_err(|error| Denied::Unknown(error.to_string()))?;
        connection.tcp = Some(whole);
    }
    Ok(strict.left_out)
}

fn of_packets(rules: &Rules, ip: &mut IpImage, strict: &mut Strict) -> Result<(), Denied> {
    if ip.mark == Some(INJECT_MARK) {
        // Every lock lets it pass: no rule allows it, and leaving it out would hide an attack.
        return Err(Denied::Image {
            rule: "no rule allows it",
            value: format!(
                "SO_MARK={INJECT_MARK:#x} is the mark of packets that a restore injects"
            ),
        });
    }
    let named = |names: &[String], name: &String| names.contains(name);
    if let Some(scope) = ip
        .scope
        .as_ref()
        .filter(|&scope| !named(&rules.devices, scope))
    {
        return Err(Denied::Image {
            rule: "Rules::device",
            value: format!("an address of the device {scope}"),
        });
    }
    let denied = |rule, option, value| Denied::Option {
        rule,
        option,
        value,
    };
    strict.option(
        &mut ip.bound_device,
        |name| Ok(named(&rules.devices, name)),
        |name| denied("Rules::device", "SO_BINDTODEVICE", name.clone()),
    )?;
    strict.option(
        &mut ip.mark,
        |mark| Ok(*mark == 0 || rules.any_mark || rules.marks.contains(mark)),
        |mark| denied("Rules::mark", "SO_MARK", format!("{mark:#x}")),
    )?;
    strict.option(
        &mut ip.priority,
        |priority| Ok(*priority <= rules.priority.max(FREE_PRIORITY)),
        |priority| denied("Rules::priority_up_to", "SO_PRIORITY", priority.to_string()),
    )?;
    strict.option(
        &mut ip.ip_options,
        |_| Ok(rules.ip_options),
        |bytes| {
            denied(
                "Rules::ip_options",
                "IP_OPTIONS",
                format!("{:02x?}", &bytes[..]),
            )
        },
    )?;
    let (transparent, freebind) = (rules.transparent, rules.freebind);
    strict.flag(
        &mut ip.transparent,
        transparent,
        "Rules::transparent",
        "IP_TRANSPARENT",
    )?;
    strict.flag(&mut ip.freebind, freebind, "Rules::freebind", "IP_FREEBIND")
}

/// Their bytes are not an option: nothing of a connection can be left out.
fn queues(rules: &Rules, tcp: &TcpParts, host: &dyn Facts) -> Result<(), Denied> {
    let receive = tcp.receive.queue.len() as u64;
    let send = tcp.send.sent.len() as u64 + tcp.send.unsent.len() as u64;
    // Every host allows so much; most connections have less.
    if receive.max(send) <= SLACK {
        return Ok(());
    }
    let (tuned, asked) = (host.tuned()?, host.buffers()?);
    for (queue, bytes, limit) in [
        ("receive", receive, tuned.receive.max(asked.receive)),
        ("send", send, tuned.send.max(asked.send)),
    ] {
        let limit = u64::from(limit.max(rules.buffers)).saturating_add(SLACK);
        if bytes > limit {
            return Err(Denied::Image {
                rule: "Rules::buffers_up_to",
                value: format!(
                    "a {queue} queue of {bytes} bytes, more than the {limit} that a connection of this host can have"
                ),
            });
        }
    }
    Ok(())
}

fn of_socket(
    rules: &Rules,
    options: &mut SocketOptions,
    host: &dyn Facts,
    strict: &mut Strict,
) -> Result<(), Denied> {
    buffers(rules, options, host, strict)?;
    let denied = |rule, option, value| Denied::Option {
        rule,
        option,
        value,
    };
    if let Some(name) = &options.congestion
        && !rules.congestion.contains(name)
        && !host.congestion()?.contains(name)
    {
        let value = name.clone();
        // Setting one that is not there would have the kernel load a module of that name.
        let denied = if host.loaded_congestion()?.contains(name) {
            denied("Rules::congestion", "TCP_CONGESTION", value)
        } else {
            Denied::Missing(NotSet::no_congestion(value))
        };
        strict.leave_out(denied)?;
        options.congestion = None;
    }
    strict.option(
        &mut options.busy_poll,
        |micros| Ok(rules.busy_poll || *micros <= host.busy_read()?),
        |micros| denied("Rules::busy_poll", "SO_BUSY_POLL", micros.to_string()),
    )?;
    strict.option(
        &mut options.prefer_busy_poll,
        |prefers| Ok(rules.busy_poll || !prefers),
        |_| denied("Rules::busy_poll", "SO_PREFER_BUSY_POLL", "1".to_owned()),
    )
}

/// Only sizes that an application asked for pass the limits of the host.
fn buffers(
    rules: &Rules,
    options: &mut SocketOptions,
    host: &dyn Facts,
    strict: &mut Strict,
) -> Result<(), Denied> {
    let locked = options.buffer_lock.unwrap_or(0);
    if locked & (SEND | RECEIVE) == 0 {
        return Ok(());
    }
    let limits = host.buffers()?;
    let mut unlocked = 0;
    for (bit, size, limit, option) in [
        (SEND, &mut options.send_buffer, limits.send, "SO_SNDBUF"),
        (
            RECEIVE,
            &mut options.receive_buffer,
            limits.receive,
            "SO_RCVBUF",
        ),
    ] {
        if locked & bit == 0 {
            continue;
        }
        strict.option(
            size,
            |bytes| Ok(*bytes <= limit.max(rules.buffers)),
            |bytes| Denied::Option {
                rule: "Rules::buffers_up_to",
                option,
                value: format!("{bytes} (this host allows {limit})"),
            },
        )?;
        if size.is_none() {
            unlocked |= bit;
        }
    }
    // What has no size of its own is tuned by the kernel.
    options.buffer_lock = Some(locked & !unlocked);
    Ok(())
}
