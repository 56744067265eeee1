package routing

import (
	"cmp"
	"slices"
	"time"
)

// line is the order of requests that wait for room: by turns over the models,
// within a model by turns over the users, and first come, first served within a
// user. It decides and keeps no time. Not safe for concurrent use.
type line struct {
	// models are the models that requests wait for, the next one first.
	models []*modelLine
	n      int
	// earliest is not after the deadline of any request that waits; zero:
	// unknown.
	earliest time.Time
}

// modelLine is the requests for one model.
type modelLine struct {
	name string
	// users are those whose requests wait, the next one first.
	users []*userLine
	n     int
}

// userLine is the requests of one user, oldest first. It is never empty.
type userLine struct {
	name    string
	waiting []*waiter
}

// waiter is one request that waits.
type waiter struct {
	promise  *Context
	model    string
	deadline time.Time
	known    knownTokens
	// leave stops the watch for the request's end.
	leave func() bool
}

func (w *waiter) user() string { return w.promise.Request.User }

func (l *line) model(name string) *modelLine {
	i := slices.IndexFunc(l.models, func(m *modelLine) bool { return m.name == name })
	if i < 0 {
		return nil
	}
	return l.models[i]
}

func (m *modelLine) user(name string) *userLine {
	i := slices.IndexFunc(m.users, func(u *userLine) bool { return u.name == name })
	if i < 0 {
		return nil
	}
	return m.users[i]
}

// waits tells whether any request waits for the model.
func (l *line) waits(model string) bool { return l.model(model) != nil }

// push adds w to the end of its user's requests. If limit requests wait for the
// model already, the newest request of the user with the most of them must
// leave: that may be w itself. A user is not made to leave for one who would
// then have as many.
func (l *line) push(w *waiter, limit int) (left *waiter) {
	m := l.model(w.model)
	if m != nil && m.n >= limit {
		own := 0
		if u := m.user(w.user()); u != nil {
			own = len(u.waiting)
		}
		most := slices.MaxFunc(m.users, func(a, b *userLine) int { return cmp.Compare(len(a.waiting), len(b.waiting)) })
		if len(most.waiting) <= own+1 {
			return w
		}
		left = most.waiting[len(most.waiting)-1]
		l.remove(left)
	}
	if m = l.model(w.model); m == nil {
		m = &modelLine{name: w.model}
		l.models = append(l.models, m)
	}
	u := m.user(w.user())
	if u == nil {
		u = &userLine{name: w.user()}
		m.users = append(m.users, u)
	}
	u.waiting = append(u.waiting, w)
	m.n++
	l.n++
	if l.n == 1 || w.deadline.Before(l.earliest) {
		l.earliest = w.deadline
	}
	return left
}

// remove takes w out, and reports whether it was there.
func (l *line) remove(w *waiter) bool {
	m := l.model(w.model)
	if m == nil {
		return false
	}
	u := m.user(w.user())
	if u == nil {
		return false
	}
	i := slices.Index(u.waiting, w)
	if i < 0 {
		return false
	}
	u.waiting = slices.Delete(u.waiting, i, i+1)
	m.n--
	l.n--
	if len(u.waiting) == 0 {
		m.users = slices.DeleteFunc(m.users, func(x *userLine) bool { return x == u })
	}
	if m.n == 0 {
		l.models = slices.DeleteFunc(l.models, func(x *modelLine) bool { return x == m })
	}
	return true
}

// serve offers requests to try in the order of the line, and takes out those
// that it takes, until it takes no more. A model for which room reports false
// is passed over. Who is served goes to the end of the models and of the
// model's users; who is not keeps the place.
func (l *line) serve(room func(model string) bool, try func(*waiter) bool) {
	for i := 0; i < len(l.models); {
		m := l.models[i]
		if !room(m.name) || !l.serveOne(m, try) {
			i++
			continue
		}
		if l.models = slices.Delete(l.models, i, i+1); m.n > 0 {
			l.models = append(l.models, m)
		}
		i = 0 // what was taken may have made room elsewhere, or less of it
	}
}

// serveOne has one request of the model taken. If it reports true, m is still
// among l.models, even without requests.
func (l *line) serveOne(m *modelLine, try func(*waiter) bool) bool {
	for i, u := range m.users {
		if !try(u.waiting[0]) {
			continue
		}
		u.waiting = slices.Delete(u.waiting, 0, 1)
		m.n--
		l.n--
		if m.users = slices.Delete(m.users, i, i+1); len(u.waiting) > 0 {
			m.users = append(m.users, u)
		}
		return true
	}
	return false
}

// expire takes out the requests whose deadline is not after now.
func (l *line) expire(now time.Time) []*waiter {
	if l.n == 0 || l.earliest.After(now) {
		return nil
	}
	var late, left []*waiter
	for _, m := range l.models {
		for _, u := range m.users {
			for _, w := range u.waiting {
				if w.deadline.After(now) {
					left = append(left, w)
				} else {
					late = append(late, w)
				}
			}
		}
	}
	for _, w := range late {
		l.remove(w)
	}
	if len(left) > 0 {
		l.earliest = slices.MinFunc(left, func(a, b *waiter) int { return a.deadline.Compare(b.deadline) }).deadline
	}
	return late
}
