package autoscaling

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type activity struct {
	id, description, cause, details string
	status, message                 string
	start, end                      time.Time
}

func (s *Server) newActivity(g *group, description, cause string, z zone) *activity {
	a := &activity{
		id: query.RequestID(), description: description, cause: cause, status: "InProgress", start: s.now(),
		details: fmt.Sprintf(`{"Subnet ID":"%s","Availability Zone":"%s"}`, z.subnet, z.az),
	}
	g.activities = append(g.activities, a)
	return a
}

func (a *activity) close(at time.Time, status, message string) {
	if !a.end.IsZero() {
		return
	}
	a.end, a.status, a.message = at, status, message
}

// activityOut is https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_Activity.html
type activityOut struct {
	ID          string    `out:"ActivityId"`
	Group       string    `out:"AutoScalingGroupName"`
	GroupARN    string    `out:"AutoScalingGroupARN"`
	Description string    `out:"Description"`
	Cause       string    `out:"Cause"`
	Start       time.Time `out:"StartTime"`
	End         time.Time `out:"EndTime"`
	Status      string    `out:"StatusCode"`
	Message     string    `out:"StatusMessage"`
	Progress    int       `out:"Progress"`
	Details     string    `out:"Details"`
}

func (a *activity) out(g *group) activityOut {
	out := activityOut{a.id, g.name, g.arn(), a.description, a.cause, a.start, a.end, a.status, a.message, 50, a.details}
	if !a.end.IsZero() {
		out.Progress = 100
	}
	return out
}

type activitiesIn struct {
	Name       string   `q:"AutoScalingGroupName"`
	IDs        []string `q:"ActivityIds"`
	MaxRecords *int
	NextToken  string
}

type activitiesOut struct {
	Activities []activityOut `out:"Activities>member"`
	NextToken  string        `out:"NextToken"`
}

// describeActivities lists the newest first, at most 100 a page.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DescribeScalingActivities.html
func (c *call) describeActivities(in *activitiesIn) (any, error) {
	type row struct {
		g *group
		a *activity
	}
	var rows []row
	if in.Name != "" {
		g, err := c.group(in.Name)
		if err != nil {
			return nil, err
		}
		for _, a := range slices.Backward(g.activities) {
			rows = append(rows, row{g, a})
		}
	} else {
		for _, g := range c.r.order {
			for _, a := range g.activities {
				rows = append(rows, row{g, a})
			}
		}
		slices.SortStableFunc(rows, func(a, b row) int { return b.a.start.Compare(a.a.start) })
	}
	if len(in.IDs) > 0 {
		rows = slices.DeleteFunc(rows, func(r row) bool { return !slices.Contains(in.IDs, r.a.id) })
	}
	page, next, err := pageOf(rows, in.NextToken, in.MaxRecords, 100, 100)
	if err != nil {
		return nil, err
	}
	out := &activitiesOut{NextToken: next}
	for _, r := range page {
		out.Activities = append(out.Activities, r.a.out(r.g))
	}
	return out, nil
}

// pageOf cuts a page out of rows: MaxRecords of them, usual where nothing is
// said, most at most. The token is a position.
func pageOf[T any](rows []T, token string, maxRecords *int, usual, most int) (page []T, next string, err error) {
	n := usual
	if maxRecords != nil {
		if n = *maxRecords; n < 1 || n > most {
			return nil, "", invalid("MaxRecords must be between 1 and %d; got %d", most, n)
		}
	}
	from := 0
	if token != "" {
		if from, err = strconv.Atoi(token); err != nil || from < 0 || from > len(rows) {
			return nil, "", query.Errorf("InvalidNextToken", "The token '%s' is invalid.", token)
		}
	}
	rows = rows[from:]
	if len(rows) > n {
		return rows[:n], strconv.Itoa(from + n), nil
	}
	return rows, "", nil
}
