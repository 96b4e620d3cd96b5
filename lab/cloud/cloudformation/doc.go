// Package cloudformation is a fake of AWS CloudFormation as far as lecafe's
// stack needs it: change sets, stacks with parameters, conditions and outputs,
// roll-back, deletion policies, import of what exists, events and drift. It
// owns templates and stacks; the resources themselves are made by the other
// fakes, in the order in which they refer to each other, so that a stack's
// instances really boot where the lab's do.
//
// It refuses, by name, resource types and functions that lecafe's template has
// no use for, nested stacks, stack sets and templates in S3. Bucket and queue
// policies are kept and shown but not evaluated: those of the template refuse
// requests without TLS, which a lab on the loopback does not speak.
//
// https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/Welcome.html
package cloudformation
