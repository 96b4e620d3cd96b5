// Package cloud is a local AWS: wire-level fakes of the calls lecafe makes, for
// lecafe's tests and for `lecafe lab`. It owns EC2, Auto Scaling, SSM
// parameters, STS, IAM roles, CloudFormation, SQS and S3 as far as lecafe uses them, states that
// take time, credentials, and faults to inject. It refuses to be kinder than
// AWS: what is not modelled answers UnsupportedOperation naming the action, a
// role may do what its policies and the bucket's or queue's allow and nothing
// else, and no signature goes unchecked.
//
// One listener serves every service, as LocalStack does: the service of a
// request is that of its SigV4 credential scope, and so is its region.
//
// A Cloud keeps what it was asked (Calls, OnCall), does harm on request
// (Inject), and forbids what an organisation would (Deny). The services'
// servers are exported for set-up behind their APIs: buckets, queues, images,
// public parameters.
package cloud
