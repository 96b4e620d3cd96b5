package lab

import (
	"fmt"
	"maps"

	"github.com/lecafe/lecafe/lab/cloud"
)

// Seed is what a new lab has in it besides base images: what on AWS is made by
// Terraform or by hand before lecafe is used.
type Seed struct {
	Buckets  map[string]map[string]string // bucket → key → object
	Queues   map[string]map[string]string // queue → attributes
	Profiles map[string]string            // instance profile → role
	Policies map[string]string            // role → IAM policy document
}

// Config is Le Café's configuration, app/config.txt in its assets bucket.
const Config = "# Le Café's menu, as the application reads it\ngreeting=Bonjour\ncurrency=EUR\nespresso=2.20\ncroissant=1.80\n"

// LeCafe is the seed of examples/lecafe-app.
func LeCafe() *Seed {
	return &Seed{
		Buckets: map[string]map[string]string{
			"lecafe-assets":  {"app/config.txt": Config},
			"lecafe-staging": {},
			"lecafe-reports": {},
			"lecafe-left":    {}, // what instances could not send before their end
		},
		Queues:   map[string]map[string]string{"lecafe-orders": nil, "lecafe-reports": nil},
		Profiles: map[string]string{"lecafe-app-profile": "lecafe-app-role"},
		Policies: map[string]string{"lecafe-app-role": appPolicy},
	}
}

// appPolicy is the least that Le Café's instances need: their config, their
// own reports and nobody else's, their queues, and their own lifecycle action.
const appPolicy = `{
  "Version": "2012-10-17",
  "Statement": [
    {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::lecafe-assets/app/*"},
    {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::lecafe-assets"},
    {"Effect": "Allow", "Action": "s3:PutObject", "Resource": ["arn:aws:s3:::lecafe-reports/${aws:userid}/*", "arn:aws:s3:::lecafe-reports/*/${aws:userid}/*"]},
    {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::lecafe-left/orders/${aws:userid}/*"},
    {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": ["arn:aws:s3:::lecafe-reports/${aws:userid}/progress/*", "arn:aws:s3:::lecafe-reports/*/${aws:userid}/progress/*"]},
    {"Effect": "Allow", "Action": ["sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:SendMessage"], "Resource": ["arn:aws:sqs:*:*:lecafe-orders", "arn:aws:sqs:*:*:lecafe-reports"]},
    {"Effect": "Allow", "Action": ["autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"], "Resource": "*"}
  ]
}`

func (s *Seed) plant(c *cloud.Cloud) error {
	for bucket, objects := range s.Buckets {
		c.S3.CreateBucket(bucket, Region)
		bodies := map[string][]byte{}
		for key, body := range objects {
			bodies[key] = []byte(body)
		}
		c.S3.Fill(bucket, maps.All(bodies))
	}
	for queue, attributes := range s.Queues {
		c.SQS.CreateQueue(queue, attributes)
	}
	for profile, role := range s.Profiles {
		c.EC2.PutInstanceProfile(profile, role)
	}
	for role, document := range s.Policies {
		if err := c.PutRolePolicy(role, role+"-policy", document); err != nil {
			return fmt.Errorf("seed: %w", err)
		}
	}
	return nil
}
