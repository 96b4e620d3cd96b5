// Package cloud is a local AWS: wire-level fakes of the calls lecafe makes, for
// lecafe's tests and for `lecafe lab`. It owns EC2, Auto Scaling, SSM
// parameters, STS, SQS and S3 as far as lecafe uses them, states that take
// time, credentials, and faults to inject. It refuses to be kinder than AWS:
// what is not modelled answers UnsupportedOperation naming the action.
//
// One listener serves every service, as LocalStack does: the service of a
// request is that of its SigV4 credential scope.
package cloud
