//go:build ignore

// oapi-codegen.go drives the client of oapi-codegen. run.sh copies it to the module of the clients.
package main

import (
	"context"
	"fmt"
	"log"
	"math"
	"net/http"
	"os"

	"clients/oapi"

	"github.com/oapi-codegen/runtime/types"
)

const content = "Ada wrote the first program."

var (
	email    = os.Getenv("DRIVER") + "@example.com"
	password = "correct horse battery"
	language = map[string]any{"lang": "en"}
	filter   = `{"lang":"en"}`
)

func check(what string, ok bool, got any) {
	if !ok {
		log.Fatalf("FAILS: %s %+v", what, got)
	}
	fmt.Println("works:", what)
}

func must[T any](v T, err error) T {
	check("no error", err == nil, err)
	return v
}

func main() {
	ctx, token := context.Background(), ""
	bearer := func(_ context.Context, r *http.Request) error {
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		return nil
	}
	api := must(oapi.NewClientWithResponses(os.Getenv("BASE"), oapi.WithRequestEditorFn(bearer)))
	account := oapi.RegisterRequest{Email: types.Email(email), Password: password}
	user := must(api.RegisterWithResponse(ctx, account))
	check("register", user.JSON201 != nil, string(user.Body))
	login := oapi.LoginRequest{Username: &email, Password: &password}
	tokens := must(api.LoginWithResponse(ctx, login))
	check("login by JSON", tokens.JSON200 != nil, string(tokens.Body))
	tokens = must(api.LoginWithFormdataBodyWithResponse(ctx, login))
	check("login by form", tokens.JSON200 != nil, string(tokens.Body))
	refresh := oapi.RefreshRequest{RefreshToken: tokens.JSON200.RefreshToken}
	next := must(api.RefreshWithResponse(ctx, refresh))
	check("refresh", next.JSON200 != nil, string(next.Body))
	token = next.JSON200.AccessToken
	me := must(api.MeWithResponse(ctx))
	check("me", me.JSON200 != nil && me.JSON200.FullName.IsNull(), string(me.Body))
	documents(ctx, api)
	account.Password = "password"
	refused := must(api.RegisterWithResponse(ctx, account)).ApplicationproblemJSON422
	check("422", refused != nil && (*refused.Errors)[0].Loc[1] == "password", refused)
}

func documents(ctx context.Context, api *oapi.ClientWithResponses) {
	embedding := make([]float32, 384) // the default of EMBEDDING_DIMENSIONS
	for i := range embedding {
		embedding[i] = float32(math.Sin(float64(i + 1)))
	}
	made := must(api.CreateDocumentWithResponse(ctx, nil, oapi.CreateDocumentRequest{
		Content: content, Metadata: &language, Embedding: &embedding}))
	check("create", made.JSON201 != nil, string(made.Body))
	list := must(api.ListDocumentsWithResponse(ctx, &oapi.ListDocumentsParams{Filter: &filter}))
	listed := list.JSON200 != nil && (*list.JSON200)[0].Id == made.JSON201.Id
	check("list with filter", listed, string(list.Body))
	found := must(api.SearchDocumentsWithResponse(ctx, nil, oapi.SearchRequest{
		Embedding: &embedding, Filter: &language}))
	hit := found.JSON200 != nil && found.JSON200.Results[0].Document.Id == made.JSON201.Id
	check("search", hit, string(found.Body))
}
