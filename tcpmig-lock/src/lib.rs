//! Stops and redirects the packets of single TCP connections
