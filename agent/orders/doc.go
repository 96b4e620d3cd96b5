// Package orders owns the way of an application's order from a local socket to
// an SQS queue: intake over HTTP on a unix socket, answered when the order is
// durable in the spool, and forwarding, which sends every accepted order at
// least once and never drops one.
//
// An order that the queue refuses for good is parked on disk with the reason.
// Everything else that goes wrong (throttling, expired credentials, a queue
// that is gone or denied, no network) is retried for as long as it lasts, and
// reported. The package never logs an order's body, opens no port, and does not
// judge boots.
package orders
