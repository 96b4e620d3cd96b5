// Package ec2 is a fake of the EC2 query API as far as lecafe, the AWS CLI and
// Packer's amazon-ebs use it. It owns instances, images, snapshots, volumes,
// launch templates, security groups and tags, and their states over time; what
// runs the instances is behind Machines.
package ec2
