//! Prints an image file: `cargo run --example print -- FILE`.

use std::error::Error;

use tcpmig_format::{Envelope, Image, Limits};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: print FILE")?;
    let bytes = std::fs::read(path)?;

    let envelope = Envelope::peek(&bytes)?;
    println!(
        "format version {}, readable from version {}, {} bytes",
        envelope.version,
        envelope.min_version,
        envelope.image_length()
    );

    let image = Image::decode(&bytes, &Limits::default())?;
    if let Some(ip) = image.ip() {
        println!("{} ({})", ip.flow, ip.family);
    }
    if let Some(tcp) = image.tcp() {
        println!(
            "{}: {} bytes sent, {} unsent, {} to read",
            tcp.state(),
            tcp.send().sent.len(),
            tcp.send().unsent.len(),
            tcp.receive().queue.len()
        );
    }
    if let Some(listener) = image.listener() {
        println!("listening on {}", listener.local);
    }
    for layer in &image.layers {
        println!("{layer}: {} bytes", layer.payload.len());
    }
    // Queues and payloads show as lengths.
    println!("{image:#?}");
    Ok(())
}
