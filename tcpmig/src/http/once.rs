//! Layers for requests that begin here.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use hyper::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::resumable::Resumed;
use super::service::BoxError;

/// Applies a layer to requests that begin here, and not to those whose response is in the middle and goes on here.
///
/// Such a request reaches the service a second time, through all its layers. Those that log it, count it or take it off a budget
/// have done so where it began: `router.layer(Once::new(TraceLayer::new_for_http()))`.
///
/// tower-http's `SetRequestIdLayer` needs it not: the id stays, if `PropagateRequestIdLayer` tells it the peer
/// ([`Movable::request_id`](super::Movable::request_id)). A layer that changes the body (compression) would not fit what the peer has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Once<L>(L);

impl<L> Once<L> {
    /// Applies this layer.
    pub fn new(layer: L) -> Self {
        Self(layer)
    }
}

impl<L: Layer<S>, S: Clone> Layer<S> for Once<L> {
    type Service = Twofold<L::Service, S>;

    fn layer(&self, service: S) -> Self::Service {
        Twofold {
            first: self.0.layer(service.clone()),
            again: service,
        }
    }
}

/// The service of [`Once`].
#[derive(Debug, Clone)]
pub struct Twofold<F, A> {
    first: F,
    again: A,
}

impl<F, A, Q, B, C> Service<Request<Q>> for Twofold<F, A>
where
    F: Service<Request<Q>, Response = Response<B>>,
    A: Service<Request<Q>, Response = Response<C>, Error: Into<F::Error>>,
{
    type Response = Response<Either<B, C>>;
    type Error = F::Error;
    type Future = Either<F::Future, A::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), F::Error>> {
        ready!(self.first.poll_ready(cx))?;
        self.again.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        if request.extensions().get::<Resumed>().is_some() {
            Either::again(self.again.call(request))
        } else {
            Either::first(self.first.call(request))
        }
    }
}

pin_project! {
    /// The answer of a [`Twofold`], and its body: that of the one service or of the other.
    #[derive(Debug)]
    pub struct Either<F, A> {
        #[pin]
        one: One<F, A>,
    }
}

pin_project! {
    #[project = OneProject]
    #[derive(Debug)]
    enum One<F, A> {
        First { #[pin] first: F },
        Again { #[pin] again: A },
    }
}

impl<F, A> Either<F, A> {
    fn first(first: F) -> Self {
        let one = One::First { first };
        Self { one }
    }

    fn again(again: A) -> Self {
        let one = One::Again { again };
        Self { one }
    }
}

impl<F, A, B, C, E, G> Future for Either<F, A>
where
    F: Future<Output = Result<Response<B>, E>>,
    A: Future<Output = Result<Response<C>, G>>,
    G: Into<E>,
{
    type Output = Result<Response<Either<B, C>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().one.project() {
            OneProject::First { first } => {
                let answered = ready!(first.poll(cx))?;
                Poll::Ready(Ok(answered.map(Either::first)))
            }
            OneProject::Again { again } => {
                let answered = ready!(again.poll(cx)).map_err(Into::into)?;
                Poll::Ready(Ok(answered.map(Either::again)))
            }
        }
    }
}

impl<B, C, D> Body for Either<B, C>
where
    B: Body<Data = D, Error: Into<BoxError>>,
    C: Body<Data = D, Error: Into<BoxError>>,
    D: Buf,
{
    type Data = D;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<D>, BoxError>>> {
        match self.project().one.project() {
            OneProject::First { first } => first.poll_frame(cx).map_err(Into::into),
            OneProject::Again { again } => again.poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.one {
            One::First { first } => first.is_end_stream(),
            One::Again { again } => again.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.one {
            One::First { first } => first.size_hint(),
            One::Again { again } => again.size_hint(),
        }
    }
}
