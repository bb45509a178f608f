//! An image in two parts: the draft, which can be made while the connection lives, and the rest.
//!
//! What the draft has, the rest has not: addresses, options and layers. Its numbers mean nothing.

use tcpmig_format::{
    ConnectionImage, Image, IpImage, Layer, Negotiated, ReceiveSpace, SendSpace, SocketOptions,
    TcpImage, TcpParts, TcpState, Window,
};

/// The draft of a connection.
pub(crate) fn new(
    ip: IpImage,
    socket: SocketOptions,
    layers: impl IntoIterator<Item = Layer>,
) -> Image {
    let parts = TcpParts {
        state: TcpState::Established,
        send: SendSpace::default(),
        receive: ReceiveSpace::default(),
        negotiated: Negotiated::default(),
        window: Window::default(),
        socket,
        pending_error: None,
    };
    // INVARIANT: a connection that has neither sent nor received anything contradicts itself in nothing.
    let tcp = TcpImage::new(parts).expect("an empty connection is valid");
    let mut draft = Image::new(ConnectionImage::new(ip, tcp));
    draft.layers.extend(layers);
    draft
}

/// The whole image: of the rest only what a draft cannot have counts, so that what was agreed to is what is built. `None` if
/// either is not the image of a connection.
pub(crate) fn complete(draft: Image, rest: Image) -> Option<Image> {
    let mut image = draft;
    let numbers = take_tcp(rest)?;
    let connection = image.connection_mut()?;
    let socket = connection.tcp.take()?.into_parts().socket;
    let parts = TcpParts { socket, ..numbers };
    // Only options changed, and they contradict no number: what was valid stays so.
    connection.tcp = Some(TcpImage::new(parts).ok()?);
    Some(image)
}

fn take_tcp(mut image: Image) -> Option<TcpParts> {
    let tcp = image.connection_mut()?.tcp.take()?;
    Some(tcp.into_parts())
}

#[cfg(test)]
mod tests {
    use tcpmig_format::{FourTuple, Limits, Seq, SocketFamily};

    use super::*;

    #[test]
    fn of_the_rest_only_what_a_draft_lacks_counts() {
        let ip = |port: u16| {
            let local = format!("198.18.0.1:{port}").parse().unwrap();
            let remote = "198.18.0.2:2000".parse().unwrap();
            let flow = FourTuple::new(local, remote).unwrap();
            IpImage::new(flow, SocketFamily::Ipv4)
        };
        let mut socket = SocketOptions::default();
        socket.busy_poll = Some(7);
        let layers = || [Layer::new("example", 1, vec![7])];
        let draft = new(ip(80), socket.clone(), layers());
        // It travels.
        let bytes = draft.encode().unwrap();
        let draft = Image::decode(&bytes, &Limits::default()).unwrap();

        let mut rest = new(ip(81), SocketOptions::default(), None);
        let mut parts = take_tcp(rest.clone()).unwrap();
        parts.receive.rcv_nxt = Seq::new(5);
        rest.connection_mut().unwrap().tcp = Some(TcpImage::new(parts).unwrap());

        let whole = complete(draft, rest).unwrap();
        assert_eq!(whole.ip().unwrap().flow, ip(80).flow);
        assert_eq!(whole.layers, layers());
        let tcp = whole.tcp().unwrap();
        assert_eq!(*tcp.socket(), socket);
        assert_eq!(tcp.receive().rcv_nxt, Seq::new(5));
    }
}
