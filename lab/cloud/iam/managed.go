package iam

import (
	"time"

	"github.com/lecafe/lecafe/lab/cloud/policy"
)

// sessionManager is what an agent of Session Manager needs.
// https://docs.aws.amazon.com/aws-managed-policy/latest/reference/AmazonSSMManagedInstanceCore.html
const sessionManager = `{
  "Version": "2012-10-17",
  "Statement": [
    {"Effect": "Allow", "Resource": "*", "Action": [
      "ssm:DescribeAssociation", "ssm:GetDeployablePatchSnapshotForInstance", "ssm:GetDocument", "ssm:DescribeDocument", "ssm:GetManifest",
      "ssm:GetParameter", "ssm:GetParameters", "ssm:ListAssociations", "ssm:ListInstanceAssociations", "ssm:PutInventory",
      "ssm:PutComplianceItems", "ssm:PutConfigurePackageResult", "ssm:UpdateAssociationStatus", "ssm:UpdateInstanceAssociationStatus",
      "ssm:UpdateInstanceInformation"]},
    {"Effect": "Allow", "Resource": "*", "Action": [
      "ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel", "ssmmessages:OpenControlChannel", "ssmmessages:OpenDataChannel"]},
    {"Effect": "Allow", "Resource": "*", "Action": [
      "ec2messages:AcknowledgeMessage", "ec2messages:DeleteMessage", "ec2messages:FailMessage", "ec2messages:GetEndpoint",
      "ec2messages:GetMessages", "ec2messages:SendReply"]}
  ]
}`

// awsManaged are the policies of AWS's own that every account has; of them the
// fake knows the one that lecafe's stack attaches.
func awsManaged() map[string]*managed {
	d, err := policy.Parse(sessionManager)
	if err != nil {
		panic("iam: " + err.Error()) // a constant
	}
	const name = "AmazonSSMManagedInstanceCore"
	return map[string]*managed{"arn:aws:iam::aws:policy/" + name: {name, document{sessionManager, d}, time.Date(2019, 3, 15, 17, 22, 12, 0, time.UTC)}}
}
